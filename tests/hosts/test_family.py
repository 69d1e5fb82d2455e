"""The record itself."""

from __future__ import annotations

from turnout.hosts import Leaf, leaves


def test_leaves_are_roles_and_paths_in_order() -> None:
    found = leaves(query="a.q", visible="a.k a.v", delta="a.o")
    assert found == (
        Leaf("a.q", "query"),
        Leaf("a.k", "visible"),
        Leaf("a.v", "visible"),
        Leaf("a.o", "delta"),
    )
    assert leaves() == ()
