from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

from turnout.measure.plots import STAND_INS, frontier_svg
from turnout.measure.results import Results


def test_svg_is_well_formed_and_takes_its_colours_from_the_page(results: Results):
    svg = frontier_svg(results)
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "var(--routed)" in svg and "http" not in svg
    assert not any(stand_in in svg for stand_in in STAND_INS.values())


def test_two_sizes_on_one_page_share_no_id(results: Results):
    def ids(width: float) -> set[str | None]:
        root = ElementTree.fromstring(
            frontier_svg(results, width=width).replace("xlink:href", "href")
        )
        return {node.get("id") for node in root.iter("clipPath")}

    assert ids(9.6) and not ids(9.6) & ids(3.9)


def test_names_are_text_not_formulas_or_tags(raw: dict, make: Callable[..., Results]):
    raw["arms"][-1]["name"] = "<b>$x$"
    svg = frontier_svg(make(arms=raw["arms"]))
    assert "&lt;b&gt;$x$" in svg and "<b>" not in svg


def test_long_names_are_cut_in_the_plot(raw: dict, make: Callable[..., Results]):
    raw["arms"][-1]["name"] = "every-other-layer-of-the-host"
    svg = frontier_svg(make(arms=raw["arms"]))
    assert "every-other-layer…" in svg and "of-the-host" not in svg


def test_pyplot_is_never_loaded(results: Results):
    frontier_svg(results)
    assert "matplotlib.pyplot" not in sys.modules


def test_one_dense_arm_alone_is_drawn(raw: dict, make: Callable[..., Results]):
    assert frontier_svg(make(arms=raw["arms"][:1], units={}, heatmap=None)).startswith("<svg")
