from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

from turnout.measure.report import html, score_tables
from turnout.measure.results import Results

EVIL = "<script>alert('$1$')</script>&\""
VOID = {"meta", "br", "img"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    return parser


def test_page_is_whole_and_needs_nothing_else(results: Results):
    page = html(results)
    seen = checked(page).seen
    assert not seen & {"script", "link", "img", "iframe", "object"}
    assert "http" not in page and "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    for title in ("Quality against time", "Every arm", "Use of every unit", "One sentence"):
        assert f"<h2>{title}" in page
    assert page.count("<svg") == 2 and "prefers-color-scheme: dark" in page
    assert all(arm.name in page for arm in results.arms)


def test_every_text_is_escaped(raw: dict):
    raw |= dict.fromkeys(("model", "command", "created", "dtype", "turnout_version"), EVIL)
    raw["notes"] = [EVIL]
    raw["machine"] |= dict.fromkeys(("cpu", "isa", "gpu", "system", "python", "torch"), EVIL)
    raw["task"] |= {"kind": EVIL, "headline": EVIL}
    raw["heatmap"] |= {"layers": [EVIL] * 6, "arm": "routed " + EVIL}
    raw["heatmap"]["tokens"] = [EVIL] * len(raw["heatmap"]["tokens"])
    raw["units"] = {"routed " + EVIL: {EVIL: [0.2, 0.4]}}
    for arm in raw["arms"]:
        arm["name"] = f"{arm['name']} {EVIL}"
        arm["quality"]["metric"] = EVIL
    raw["arms"][1]["name"] = "routed " + EVIL
    page = html(Results.model_validate(raw))
    assert "<script" not in page
    assert "script" not in checked(page).seen


def test_parts_without_data_are_left_out(raw: dict, make: Callable[..., Results]):
    page = html(make(arms=raw["arms"][:1], units={}, heatmap=None, notes=[]))
    checked(page)
    for title in ("Use of every unit", "One sentence", "Notes"):
        assert f"<h2>{title}" not in page
    assert "Nothing was routed" in page


def test_classes_are_shown_of_dense_and_of_the_chosen_arm(make: Callable[..., Results]):
    row = {"precision": 0.5, "recall": 0.25, "f1-score": 1 / 3, "support": 1200}
    report = {"accuracy": 0.5, "World": row, "macro avg": row}
    tagged = {"entities": {"LOC": row}, "tokens": {"O": row, "accuracy": 0.9}}
    assert [name for name, _ in score_tables(report)] == [""]
    assert [(name, list(rows)) for name, rows in score_tables(tagged)] == [
        ("entities", ["LOC"]),
        ("tokens", ["O"]),
    ]
    results = make()
    arms = [arm.model_copy(update={"report": report}) for arm in results.arms]
    page = html(results.model_copy(update={"arms": arms}))
    checked(page)
    assert page.count('<th scope="row">World</th>') == 2 and "<td>1,200</td>" in page
    assert "Class by class" in page and "0.333" in page


def test_heat_map_has_a_cell_for_every_token_and_layer(results: Results):
    assert results.heatmap is not None
    cells = re.findall(r'<i style="--r:([\d.]+)"', html(results))
    tokens, layers = len(results.heatmap.tokens), len(results.heatmap.layers)
    assert len(cells) == tokens * layers
    # the tower of the first token, last layer on top
    assert [float(cell) for cell in cells[:layers]] == [row[0] for row in results.heatmap.ran][::-1]


def test_sites_of_many_units_show_each(make: Callable[..., Results]):
    page = html(make(units={"routed-50": {"heads.0": [0.1, 0.9, 0.5]}}))
    assert page.count('title="unit ') == 3 and "unit 1: 90 %" in page
