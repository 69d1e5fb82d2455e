"""The result in words, honest also when routing loses."""

from __future__ import annotations

from dataclasses import dataclass

from turnout.measure.frontier import verdict, verdicts
from turnout.measure.results import Arm, Family, Results

KEPT = 0.99  # share of dense quality that counts as kept when the headline arm is chosen


@dataclass(frozen=True)
class Headline:
    """`arm` is the arm that the words are about; None when nothing was routed."""

    arm: Arm | None
    title: str
    details: list[str]


def kept(results: Results, arm: Arm) -> float:
    """Quality of an arm as a share of dense quality; 0 when dense itself scores 0."""
    dense = results.dense.quality.value
    return arm.quality.value / dense if dense else 0.0


def headline_arm(results: Results) -> Arm | None:
    """The fastest routed arm that keeps 99 % of dense quality; without one, the routed arm that is
    the most above the plainly cut models of its time, or the best in quality."""
    routed = results.family("routed")
    good = [arm for arm in routed if kept(results, arm) >= KEPT]
    if good:
        return good[0]
    gains = {arm.name: verdict(results, arm).difference for arm in routed}
    if any(gain is None for gain in gains.values()):
        return max(routed, key=lambda arm: arm.quality.value, default=None)
    return max(routed, key=lambda arm: gains[arm.name] or 0.0, default=None)


def headline(results: Results) -> Headline:
    """A title that can stand alone and the sentences that qualify it."""
    arm = headline_arm(results)
    if arm is None:
        return Headline(None, "Nothing was routed in this measurement", [])
    title = f"Routing keeps {percent(kept(results, arm))} of the {results.task.headline}"
    if arm.speedup.low <= 1:
        title += " but saves no time" + (", it costs time" if arm.speedup.high < 1 else "")
    else:
        title += f" at {arm.speedup.value:.1f}× the speed"
    return Headline(arm, title + _against_static(results, arm), _details(results, arm))


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent; the sign never goes to another line than its number."""
    return f"{share * 100:.{digits}f}\u00a0%"


def points(difference: float) -> str:
    """A difference of scores in points of 0.01, without its sign."""
    return f"{abs(difference) * 100:.1f} points"


def _against_static(results: Results, arm: Arm) -> str:
    found = verdict(results, arm)
    if found.difference is None:
        return ""
    if found.status == "above":
        return f", {points(found.difference)} above a cut model as fast"
    if found.status == "below":
        return f"; plainly cutting the model does better, by {points(found.difference)}"
    return "; plainly cutting the model does about as well"


def _details(results: Results, arm: Arm) -> list[str]:
    quality, dense, speed = arm.quality, results.dense.quality, arm.speedup
    rounds = len(arm.seconds.runs)
    return [
        f"{arm.name}: {quality.metric} {quality.value:.3f} ({quality.low:.3f} to "
        f"{quality.high:.3f}) where the dense model has {dense.value:.3f}, on "
        f"{results.task.test_examples:,} test examples; {speed.value:.2f}× as fast "
        f"({speed.low:.2f} to {speed.high:.2f} over {rounds} paired rounds), running "
        f"{arm.units_run:.1f} of {arm.units_total:g} layers for an example.",
        *_perplexity(results, arm),
        _count(results, "static", "plainly cut models"),
        _count(results, "random", "random routing"),
    ]


def _perplexity(results: Results, arm: Arm) -> list[str]:
    """What language models are usually judged by; fewer is better."""
    found, dense = (each.report.get("perplexity") for each in (arm, results.dense))
    if not isinstance(found, float) or not isinstance(dense, float):
        return []
    return [f"Perplexity by token: {found:.2f} where the dense model has {dense:.2f}."]


def _count(results: Results, family: Family, noun: str) -> str:
    if not results.family(family):
        return f"Nothing was measured against {noun}, so that comparison is open."
    statuses = [found.status for found in verdicts(results, family)]
    names = {
        "above": f"above {noun} of the same time",
        "level": f"level with {noun} (within the error)",
        "below": f"below {noun} of the same time",
        "outside": f"faster than all {noun} measured here, so not compared",
    }
    parts = [f"{statuses.count(key)} {text}" for key, text in names.items() if key in statuses]
    budgets = "1 routed budget" if len(statuses) == 1 else f"{len(statuses)} routed budgets"
    return f"Of {budgets}: {', '.join(parts)}."
