"""`turnout compare`: several routers on one recipe, trained alike and measured in one run."""

from turnout.contest.contenders import CONTENDERS, OWN, chosen, with_router
from turnout.contest.running import compare, compare_seeds
from turnout.contest.standings import SPEEDS, Comparison, Point, Standing, load
from turnout.contest.tables import Grid, arms, ranking

__all__ = [
    "CONTENDERS",
    "OWN",
    "SPEEDS",
    "Comparison",
    "Grid",
    "Point",
    "Standing",
    "arms",
    "chosen",
    "compare",
    "compare_seeds",
    "load",
    "ranking",
    "with_router",
]
