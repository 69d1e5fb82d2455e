"""Who takes part: a router at the site where it is at home, in place of the recipe's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from turnout.errors import UserError
from turnout.recipe import Recipe
from turnout.routers import AnyRouterConfig

OWN = "recipe"
# One line a contender.
CONTENDERS: dict[str, dict[str, Any]] = {
    "exit": {"kind": "exit"},
    "gate": {"kind": "gate"},
    "gate-recurrent": {"kind": "gate", "shape": "recurrent"},
    "gate-token": {"kind": "gate", "site": "ffn", "granularity": "token", "hold_first": 1},
    "gate-head": {"kind": "gate", "site": "head"},
    "gate-expert": {"kind": "gate", "site": "expert", "granularity": "token", "keep": "top-k"},
    "attention": {"kind": "attention", "hold_first": 1},
    "token-attention": {
        "kind": "token-attention",
        "keep": "top-k",
        "visible": False,
        "hold_first": 2,
        "least": 0.1,
    },
    "policy": {"kind": "policy", "hold_first": 1},
    "q-learning": {"kind": "q-learning", "hold_first": 1},
    "random-jump": {"kind": "random-jump", "hold_first": 1},
}


def chosen(names: Sequence[str]) -> list[str]:
    """The contenders that some names mean. Raises UserError for an unknown one."""
    known = [*CONTENDERS, OWN]
    wanted = list(CONTENDERS) if "all" in names else []
    for name in names:
        if name not in (*known, "all"):
            raise UserError(f"unknown contender {name!r}; known: all, {', '.join(known)}")
        if name != "all" and name not in wanted:
            wanted.append(name)
    if not wanted:
        raise UserError("name at least one contender, or all")
    return wanted


def with_router(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a contender's router in place of its own."""
    if name == OWN:
        return recipe
    router = TypeAdapter(AnyRouterConfig).validate_python(CONTENDERS[name])
    train = (
        recipe.train if router.owns_units else recipe.train.model_copy(update={"seed_phase": 0.0})
    )
    return recipe.model_copy(update={"routers": [router], "train": train})
