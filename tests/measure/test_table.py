from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from turnout.measure.results import Results
from turnout.measure.table import cells, ordered, table


def printed(results: Results) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(results))
    return captured.get()


def test_ratio_and_quality_come_first_with_their_spread(results: Results):
    row = cells(results, results.dense)
    assert list(row)[:4] == ["arm", "speed-up", "accuracy", "kept"]
    text = printed(results)
    assert "0.902" in text and "0.896 to 0.908" in text and "1.79×" in text


def test_order_is_dense_then_families_from_slow_to_fast(results: Results):
    names = [arm.name for arm in ordered(results)]
    assert names[0] == "dense"
    assert names[1:5] == ["routed-75", "routed-50", "routed-35", "routed-25"]


def test_names_are_not_read_as_markup(raw: dict, make: Callable[..., Results]):
    raw["arms"][1]["name"] = "[red]loud[/red]"
    assert "[red]loud[/red]" in printed(make(arms=raw["arms"], units={}, heatmap=None))


def test_unknown_memory_is_a_dash(raw: dict, make: Callable[..., Results]):
    raw["arms"][0]["peak_memory_bytes"] = None
    results = make(arms=raw["arms"])
    assert cells(results, results.dense)["memory"].main == "–"
