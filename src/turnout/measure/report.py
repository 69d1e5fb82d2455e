"""Results as one HTML page that stands alone: no script, no address, nothing to load."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from turnout.measure.frontier import verdict
from turnout.measure.plots import frontier_svg
from turnout.measure.results import Arm, Family, Heatmap, Results
from turnout.measure.style import CSS
from turnout.measure.table import SIGNS, Cell, cells, ordered
from turnout.measure.words import headline, kept, percent, points

SCORES = ("precision", "recall", "f1-score", "support")
FAMILY_WORDS: dict[Family, str] = {
    "routed": "routed, one point a budget",
    "static": "plainly cut, no router",
    "random": "random routing",
    "noise": "trained noise, one point a scale",
    "dense": "dense, nothing skipped",
}


def html(results: Results) -> str:
    """The whole page. Every text of the results is escaped."""
    words = headline(results)
    task = results.task
    parts = [
        f'<p class="eyebrow">{escape(results.model)} · {escape(task.kind)} · '
        f"{task.test_examples:,} test examples · {escape(results.created)}</p>",
        f"<h1>{escape(words.title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in words.details),
        _figures(results, words.arm) if words.arm else "",
        _frontier(results),
        _table(results, words.arm),
        _units(results),
        _classes(results, words.arm),
        _heatmap(results.heatmap) if results.heatmap else "",
        _machine(results),
        _notes(results.notes) if results.notes else "",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(words.title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>Made by turnout {escape(results.turnout_version)} from results.json, "
        f"schema version {results.schema_version}. Every number on this page is in that file."
        "</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, why: str, *body: str) -> str:
    content = "\n".join(part for part in body if part)
    return f'<section>\n<h2>{title}</h2>\n<p class="why">{why}</p>\n{content}\n</section>'


def _figures(results: Results, arm: Arm) -> str:
    found = verdict(results, arm)
    against = ("–", "against a cut model: none measured that is as fast", "level")
    if found.difference is not None:
        sign = "+" if found.difference >= 0 else "−"
        end = {"above": "", "level": " (within the error)", "below": ""}[found.status]
        against = (
            f"{sign}{points(found.difference)}",
            f"against a cut model as fast{end}",
            found.status,
        )
    shown = [
        (percent(kept(results, arm)), f"of the dense {results.task.headline} kept", "plain"),
        (
            f"{arm.speedup.value:.2f}×",
            f"speed, {arm.speedup.low:.2f} to {arm.speedup.high:.2f}",
            "plain",
        ),
        (f"{arm.units_run:.1f} of {arm.units_total:g}", "layers run for an example", "plain"),
        against,
    ]
    tiles = (
        f'<div><b class="{colour}">{escape(big)}</b><span>{escape(what)}</span></div>'
        for big, what, colour in shown
    )
    return f'<div class="card figures">{"".join(tiles)}</div>'


def _frontier(results: Results) -> str:
    present: list[Family] = [family for family in FAMILY_WORDS if results.family(family)]
    legend = "".join(
        f'<li><i class="{family}" style="--c:var(--{family})"></i>{FAMILY_WORDS[family]}</li>'
        for family in present
    )
    label = "; ".join(
        f"{arm.name}: {results.task.headline} {arm.quality.value:.3f} at "
        f"{100 / arm.speedup.value:.0f} % of dense time"
        for arm in ordered(results)
    )
    return _section(
        "Quality against time",
        "Up and left is better. Routing earns its place only above the dashed line of models that "
        "were cut plainly to the same time, and above the dotted line of random routing. "
        "Bars are intervals: 95\u00a0% over test examples for quality, "
        f"{_over_rounds(results)} for time.",
        f'<div class="card" role="img" aria-label="{escape(label)}">',
        f'<ul class="legend">{legend}</ul>',
        f'<div class="wide">{frontier_svg(results)}</div>',
        f'<div class="narrow">{frontier_svg(results, width=3.9, height=4.2)}</div>',
        "</div>",
    )


def _over_rounds(results: Results) -> str:
    rounds = len(results.dense.seconds.runs)
    return "95\u00a0% over rounds" if rounds >= 6 else f"the range of only {rounds} rounds"


def _table(results: Results, chosen: Arm | None) -> str:
    rows = [(arm, cells(results, arm)) for arm in ordered(results)]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0][1])
    mark = ' class="chosen"'
    body = "".join(
        f"<tr{mark if arm is chosen else ''}>{_row(arm, row.values())}</tr>\n" for arm, row in rows
    )
    return _section(
        "Every arm",
        "Under each number stands its interval. “Against cutting” is the distance to the dashed "
        "line at the arm’s own time.",
        f'<div class="card scroll"><table>\n<thead><tr>{heads}</tr></thead>',
        f"<tbody>\n{body}</tbody></table></div>",
    )


def _row(arm: Arm, row: Iterable[Cell]) -> str:
    classes = {SIGNS["above"]: "above", SIGNS["below"]: "below"}
    first, *rest = row
    name = (
        f'<th scope="row"><span class="dot" style="--c:var(--{arm.family})"></span>'
        f"{escape(first.main)}<small>{escape(first.spread)}</small></th>"
    )
    return name + "".join(
        f'<td class="{classes.get(cell.main[0], "")}">{escape(cell.main)}'
        f"<small>{escape(cell.spread)}</small></td>"
        for cell in rest
    )


def _units(results: Results) -> str:
    names = [arm.name for arm in ordered(results) if arm.name in results.units]
    routed = [arm.name for arm in results.family("routed")]
    names = [name for name in names if name in routed] or names
    if not names:
        return ""
    sites = list(dict.fromkeys(site for name in names for site in results.units[name]))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(site)}</th>'
        + "".join(f"<td>{_use(results.units[name].get(site))}</td>" for name in names)
        + "</tr>\n"
        for site in sites
    )
    return _section(
        "Use of every unit",
        "The share of rows (tokens or sequences) that ran each unit on the test set. A column of "
        "equal bars means that the router learned no preference; an empty or a full bar, that "
        "there is no choice left.",
        '<div class="card scroll"><table class="use">',
        f'<thead><tr><th scope="col">site</th>{heads}</tr></thead>\n<tbody>\n{body}</tbody>',
        "</table></div>",
    )


def _use(shares: list[float] | None) -> str:
    if not shares:
        return "–"
    mean = sum(shares) / len(shares)
    if len(shares) == 1:
        bars = f'<span class="bar"><b style="width:{mean * 100:.1f}%"></b></span>'
    else:
        bars = "".join(
            f'<b style="--h:{share * 100:.1f}%" title="unit {unit}: {share * 100:.0f} %"></b>'
            for unit, share in enumerate(shares)
        )
        bars = f'<span class="units">{bars}</span>'
    return f"{bars}<small>{percent(mean, 0)}</small>"


def _classes(results: Results, chosen: Arm | None) -> str:
    """Precision, recall and F1 of every class, of dense and of the arm that is talked about."""
    arms = [results.dense] if chosen is None else [results.dense, chosen]
    tables = [_scores(arm, part) for arm in arms for part in score_tables(arm.report)]
    if not tables:
        return ""
    return _section(
        "Class by class",
        "Precision, recall and F1 on the test set; support is the number of true cases. Named "
        "entities are judged twice: as whole entities, and word by word.",
        *tables,
    )


def _scores(arm: Arm, part: tuple[str, dict[str, dict[str, float]]]) -> str:
    title, rows = part
    heads = "".join(f'<th scope="col">{name}</th>' for name in SCORES)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_score(row, name)}</td>" for name in SCORES)
        + "</tr>\n"
        for label, row in rows.items()
    )
    name = escape(f"{arm.name}{title and ', '}{title}")
    return (
        f'<div class="card scroll"><table>\n<thead><tr><th scope="col">{name}</th>{heads}</tr>'
        f"</thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _score(row: dict[str, float], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    return f"{value:,.0f}" if name == "support" else f"{value:.3f}"


def score_tables(report: Any) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """The tables in a task's report, with their names: rows of scores by label."""
    rows = {k: v for k, v in report.items() if isinstance(v, dict) and set(SCORES) & set(v)}
    found = [("", rows)] if rows else []
    for name, value in report.items():
        if isinstance(value, dict) and name not in rows:
            found += [(name, table) for _, table in score_tables(value)]
    return found


def _heatmap(heatmap: Heatmap) -> str:
    key = "".join(f"<i>{escape(layer)}</i>" for layer in reversed(heatmap.layers))
    towers = "".join(_tower(heatmap, column, token) for column, token in enumerate(heatmap.tokens))
    return _section(
        "One sentence, token by token",
        "A real test sentence. Above each token stands one cell a layer, the first layer at the "
        f"bottom: filled ran, pale was skipped. Arm: {escape(heatmap.arm)}.",
        f'<div class="card sentence"><div class="token key" aria-hidden="true">{key}'
        f"<span>&nbsp;</span></div>{towers}</div>",
    )


def _tower(heatmap: Heatmap, column: int, token: str) -> str:
    ran = [row[column] for row in heatmap.ran]
    cell = "".join(
        f'<i style="--r:{share:.3g}" title="{escape(layer)}: {share * 100:.0f} %"></i>'
        for layer, share in reversed(list(zip(heatmap.layers, ran, strict=True)))
    )
    said = escape(f"{token}: {sum(ran):.3g} of {len(ran)} layers")
    text = f"<span>{escape(token)}</span>"
    return f'<div class="token" role="img" aria-label="{said}">{cell}{text}</div>'


def _machine(results: Results) -> str:
    machine, dense = results.machine, results.dense
    memory = f", {machine.memory_bytes / 1e9:.0f} GB" if machine.memory_bytes else ""
    shown = {
        "Processor": f"{machine.cpu}, {machine.cores} cores{memory}",
        "Instructions": machine.isa + (", AMX" if machine.amx else ", no AMX"),
        "Graphics": machine.gpu or "none",
        "Threads": str(machine.threads),
        "Software": f"Python {machine.python}, torch {machine.torch}, transformers "
        f"{machine.transformers}, turnout {machine.turnout}, {machine.system}",
        "Precision": results.dtype,
        "Batches": f"up to {results.batch_tokens:,} tokens",
        "Rounds": f"{len(dense.seconds.runs)} after a warm-up; every round runs every arm once, in "
        "shuffled order",
        "Command": results.command,
    }
    rows = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in shown.items())
    return _section(
        "Machine and method",
        "Speed is the median over rounds of dense seconds divided by the arm’s seconds in the same "
        "round, so a slow spell of the machine cancels. Quality intervals come from drawing test "
        "examples again. “Above” and “below” are said only beyond the interval.",
        f'<div class="card"><dl>{rows}</dl></div>',
    )


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section>\n<h2>Notes</h2>\n<ul>{items}</ul>\n</section>"
