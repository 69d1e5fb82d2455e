"""One block of a host, read through its family's record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from turnout.errors import UserError
from turnout.hosts.family import Leaf, Stack
from turnout.hosts.linear import matrix_of


@dataclass(frozen=True, eq=False)
class BlockView:
    """One block of a host, read through its family's record. heads: of the queries; groups: of the
    keys and values, which some hosts share among query heads. top: experts that a token runs, in
    hosts that have experts by themselves."""

    stack: Stack
    layer: int
    depth: int
    module: nn.Module
    heads: int = 1
    groups: int = 1
    top: int = 0

    @property
    def place(self) -> str:
        """Stack and layer, as a site's ``place``."""
        return f"{self.stack.name}.{self.layer}"

    @property
    def bank(self) -> str:
        """Name of the units that it has in ``model.turnout.units`` (modules' names take no dot)."""
        return f"{self.stack.name}_{self.layer}"

    @property
    def merge(self) -> str:
        """Path of attention's output projection."""
        found = [leaf.path for leaf in self.stack.attention if leaf.role == "delta"]
        return self.stack.merge or found[0]

    def neurons(self) -> tuple[list[tuple[str, nn.Module]], tuple[str, nn.Module]]:
        """Paths and modules that make the neurons of the ffn, and the one that reads them. Raises
        UserError where the family's record does not name them."""
        record = self.stack.neurons
        if record is None:
            raise UserError(
                f"the record of {self.stack.blocks} does not say where the neurons of its ffn are: "
                "see `neurons` in docs/hosts.md"
            )
        there = dict(self.module.named_modules())
        into = [(path, there[path]) for path in record.into if path in there]
        if not into or record.out not in there:
            raise UserError(
                f"block {self.layer} of {self.stack.blocks} has none of "
                f"{', '.join((*record.into, record.out))}: see `neurons` in docs/hosts.md"
            )
        return into, (record.out, there[record.out])

    @property
    def halves(self) -> int:
        """Projections fused in one matrix."""
        return 1 if self.stack.neurons is None else self.stack.neurons.halves

    @property
    def own_experts(self) -> Any:
        """The module of experts that the host has by itself in this block; None = it has none."""
        there = dict(self.module.named_modules())
        return there.get(self.stack.experts) if self.stack.experts else None

    def target(self, name: str) -> list[str]:
        """Paths of the linear layers that an adapter's target names."""
        if name == "output":
            return [self.merge]
        if name in ("in", "out"):
            into, (out, _) = self.neurons()
            return [path for path, _ in into] if name == "in" else [out]
        by_role: dict[str, list[str]] = {}
        for leaf in self.stack.attention:
            by_role.setdefault(leaf.role, []).append(leaf.path)
        if "fused" in by_role:
            return by_role["fused"]
        key, value = by_role["visible"]
        return {"query": by_role["query"], "key": [key], "value": [value]}[name]

    def neuron_count(self) -> int:
        """Neurons of the ffn, F."""
        _, (_, out) = self.neurons()
        weight, _ = matrix_of(out)
        return int(weight.shape[1])

    def leaves(self, kind: str) -> Iterator[tuple[Leaf, nn.Module]]:
        """The leaves of a sub-block (attention, cross, ffn) that exist in this block."""
        for leaf in getattr(self.stack, kind):
            yield leaf, self.module.get_submodule(leaf.path)


def unit_name(path: str) -> str:
    """A name for what stands beside a layer, from its path. Transformers renames keys on saving by
    patterns such as ``q_proj``, wherever in a key they stand; none of them is in capitals."""
    return path.replace(".", "__").upper()
