"""Run the routing layer between a backbone and the heads of its tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.execute.adapters import AdapterPlan
from turnout.flow import Flow
from turnout.route import Route, Site, Trace
from turnout.units.output import OutputBank, Reader

if TYPE_CHECKING:
    from turnout.execute.routing import Routing


@dataclass(frozen=True, eq=False)
class OutputHandle:
    """The site, its units, and the routing of the model."""

    routing: Routing
    site: Site
    bank: OutputBank

    def change(
        self, rows_BTD: Tensor, mask_BT: Tensor | None, task: int, index_B: Tensor | None
    ) -> Tensor:
        """What a head reads, with what the chosen units add; padding is left as it is."""
        flow = self.routing.open_flow()
        part = self._part(flow, rows_BTD, mask_BT, task, index_B)
        route = self.routing.decide(self.site, rows_BTD, part)
        self._note(flow, part, route)
        plan = AdapterPlan(route.weight_BTU, rows_BTD)
        weight_RU, mask = plan.weight_RU(None), part.mask_BT(self.site)
        if mask is not None:
            weight_RU = weight_RU * mask.reshape(-1, 1).to(weight_RU.dtype)
        return plan.add(rows_BTD, rows_BTD, weight_RU, self.bank.change)

    def _part(
        self,
        flow: Flow,
        rows_BTD: Tensor,
        mask_BT: Tensor | None,
        task: int,
        index_B: Tensor | None,
    ) -> Flow:
        """The pass as it is for the texts that ask for one task."""
        batch = len(rows_BTD)
        whole = batch if index_B is None or flow.task_B is None else len(flow.task_B)
        keys_B = flow.keys_B(whole, rows_BTD.device) - flow.seed
        part = replace(
            flow,
            trace=Trace(),
            known_keys_B=keys_B if index_B is None else keys_B.index_select(0, index_B),
            task_B=torch.full((batch,), task, device=rows_BTD.device),
        )
        mask = None if mask_BT is None or bool(mask_BT.all()) else mask_BT.bool()
        part.trace.shape_BT[self.site.stack] = (batch, rows_BTD.shape[1])
        part.trace.mask_BT[self.site.stack] = mask
        return part

    def _note(self, flow: Flow, part: Flow, route: Route) -> None:
        """Put the route into the pass's trace, after those of other tasks."""
        trace, key, stack = flow.trace, self.site.key, self.site.stack
        if key not in trace:
            trace[key] = route
            trace.shape_BT[stack] = part.trace.shape_BT[stack]
            trace.mask_BT[stack] = part.trace.mask_BT[stack]
            return
        shapes = (trace.shape_BT[stack], part.trace.shape_BT[stack])
        length = max(shape[1] for shape in shapes)
        masks = []
        for (batch, own), each in zip(
            shapes, (trace.mask_BT[stack], part.trace.mask_BT[stack]), strict=True
        ):
            real = route.weight_BTU.new_ones(batch, own, dtype=torch.bool) if each is None else each
            masks.append(F.pad(real, (0, length - own)))

        def both(values: list[Tensor]) -> Tensor:
            """Values of every token, (B, T or 1, U) each, padded to one length."""
            wide = [
                F.pad(value.expand(-1, own, -1), (0, 0, 0, length - own))
                for value, (_, own) in zip(values, shapes, strict=True)
            ]
            return torch.cat(wide)

        before = trace[key]
        scores = [each for each in (before.score_BTU, route.score_BTU) if each is not None]
        trace[key] = Route(
            self.site,
            both([before.weight_BTU, route.weight_BTU]),
            both(scores) if len(scores) == 2 else None,
        )
        trace.shape_BT[stack] = (shapes[0][0] + shapes[1][0], length)
        trace.mask_BT[stack] = torch.cat(masks)


class RoutedReader(Reader):
    """A reader with the routing layer in it."""

    _turnout_output: OutputHandle

    def forward(
        self, rows_BTD: Tensor, mask_BT: Tensor | None, task: int, index_B: Tensor | None
    ) -> Tensor:
        rows_BTD = super().forward(rows_BTD, mask_BT, task, index_B)
        return self._turnout_output.change(rows_BTD, mask_BT, task, index_B)
