"""What one call of ``generate`` cost each of its answers, and which layers ran for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from turnout.cost import dense_flops_B, entered_in, nested, own_costs, route_flops_B
from turnout.flow import Flow
from turnout.route import Trace


@dataclass(frozen=True)
class Pass:
    """One pass, of B rows. spent_B and whole_B: routed work and what it would be if everything ran,
    FLOPs. ran: by site key, how many tokens' worth of it ran in each row, (B,). tokens: by site
    key, real tokens of each row, (B,). prompt: does the pass only read (an encoder's)."""

    spent_B: Tensor
    whole_B: Tensor
    ran: dict[str, Tensor]
    tokens: dict[str, Tensor]
    prompt: bool


def pass_of(flow: Flow) -> Pass:
    """What a finished pass cost, by row."""
    trace = flow.trace
    valid = {stack: trace.valid_BT(stack).cpu() for stack in _stacks(trace)}
    costs = own_costs(route.site for route in trace.values())
    spent: list[Tensor] = []
    whole: list[Tensor] = []
    ran, tokens = {}, {}
    for route in nested(trace):
        site, valid_BT = route.site, trace.valid_BT(route.site.stack)
        entered = entered_in(trace, trace[site.key])
        written = site.key in trace.written
        spent.append(route_flops_B(route, valid_BT, entered, written).cpu())
        whole.append(dense_flops_B(replace(site, cost=costs[site.key]), valid_BT).cpu())
        real_BT = valid[site.stack].float()
        ran[site.key] = (route.share_BT.cpu() * real_BT).sum(1)
        tokens[site.key] = real_BT.sum(1)
    prompt = "decoder" not in trace.shape_BT and "encoder" in trace.shape_BT
    spent_B, whole_B = torch.stack(spent).sum(0), torch.stack(whole).sum(0)
    return Pass(spent_B.double(), whole_B.double(), ran, tokens, prompt)


def _stacks(trace: Trace) -> set[str]:
    return {route.site.stack for route in trace.values()}


@dataclass
class Work:
    """The passes of one call, in their order; watch a routing with ``see``. prompts, samples,
    beams: how many of them, of answers to each, and of beams of each, stand in the call."""

    prompts: int
    samples: int
    beams: int
    passes: list[Pass] = field(default_factory=list)

    def see(self, flow: Flow) -> None:
        """Note a pass that is over; one in which nothing is routed costs nothing here."""
        if flow.trace:
            self.passes.append(pass_of(flow))

    def share(self, answer: int, steps: int) -> float:
        """Share of the routed work that an answer took, 0..1; 1.0 where nothing was routed.

        steps: tokens that it has: the passes after its end were made for other answers of its
        batch. Of beams, all that its prompt had count, for as long as they went on.
        """
        spent = whole = 0.0
        for each in self._of(steps):
            rows = self._rows(len(each.spent_B), answer)
            spent += float(each.spent_B[rows].sum())
            whole += float(each.whole_B[rows].sum())
        return spent / whole if whole else 1.0

    def layers(self, answer: int, steps: int) -> dict[str, float]:
        """By site key: the share of an answer's tokens, read and written, that ran there."""
        ran: dict[str, float] = {}
        tokens: dict[str, float] = {}
        for each in self._of(steps):
            rows = self._rows(len(each.spent_B), answer)
            for key, ran_B in each.ran.items():
                ran[key] = ran.get(key, 0.0) + float(ran_B[rows].sum())
                tokens[key] = tokens.get(key, 0.0) + float(each.tokens[key][rows].sum())
        return {key: value / tokens[key] if tokens[key] else 0.0 for key, value in ran.items()}

    def _of(self, steps: int) -> list[Pass]:
        """The passes that an answer took part in: a step each, and those that only read."""
        if self.beams > 1:
            return self.passes
        found, left = [], steps
        for each in self.passes:
            if each.prompt or left > 0:
                found.append(each)
                left -= not each.prompt
        return found

    def _rows(self, batch: int, answer: int) -> slice:
        """The rows of a pass that an answer stands in. An encoder reads a prompt once; answers and
        beams of a prompt stand side by side."""
        if self.beams == 1 and batch == self.prompts * self.samples:
            return slice(answer, answer + 1)
        size = max(1, batch // self.prompts)
        prompt = answer // self.samples
        return slice(prompt * size, (prompt + 1) * size)
