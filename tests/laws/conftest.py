"""The laws use one more router: fixed weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fixed_router import fixed_router


@pytest.fixture(autouse=True, scope="package")
def _fixed_router() -> Iterator[None]:
    with fixed_router():
        yield
