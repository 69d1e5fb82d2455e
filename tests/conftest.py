"""Settings for all tests: one thread, a fixed seed, no progress bars."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hosts_table import HOSTS, Host
from transformers.utils import logging


def pytest_configure() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    """Each test starts from the same random state and leaves gradients on."""
    torch.manual_seed(0)
    yield


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Every line of the table of hosts, one after the other."""
    return request.param
