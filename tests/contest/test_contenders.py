"""The contenders: routers by name."""

from __future__ import annotations

import pytest

from turnout import UserError, contest
from turnout.install import parse_router


def test_every_contender_is_a_router() -> None:
    for name, spec in contest.CONTENDERS.items():
        assert parse_router(spec).kind in name or name.startswith("gate"), name


def test_names_of_contenders() -> None:
    assert contest.chosen(["all"]) == list(contest.CONTENDERS)
    assert contest.chosen(["gate", "all", "recipe"]) == [*contest.CONTENDERS, "recipe"]
    with pytest.raises(UserError, match="unknown contender 'gat'; known: all, exit"):
        contest.chosen(["gat"])
