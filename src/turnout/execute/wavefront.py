"""Bulk work depth by depth: rows at the same depth are pooled across batches.

When inputs leave early or skip layers one by one, a batch thins out and small operations eat the
gain. Here all inputs of a window move through the model together: at each depth the router is
asked, what is left of thinned packs is joined with its neighbours of like length, and the blocks
up to the next choice are run on what must run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turnout.execute.batches import FILL, Batches, groups_by_length, whole_flops
from turnout.execute.pack import Pack, Pool
from turnout.execute.rows import modulate
from turnout.execute.span import run_span
from turnout.route import Site
from turnout.routers.base import Router

WEIGHT = ("", "weight")  # of the block that a pack runs next


class Wavefront(Batches):
    """One window of inputs, moved through the model depth by depth."""

    def run(self) -> None:
        """Fill in the logits of the window."""
        self.routing: Any = self.model.turnout
        self.router: Router = self.routing.all_routers()[0]
        self.seed = self.routing.new_flow(self.model, {}).seed
        sites = self.router.sites
        packs = deque(self._embed(sites[0].layer))
        stops = [*(site.layer for site in sites[1:]), None]
        for site, stop in zip(sites, stops, strict=True):
            packs = self._step(site, stop, packs)
        self.meter.whole += sum(whole_flops(site.cost, self.lengths) for site in sites)

    def _embed(self, stop: int) -> Iterator[Pack]:
        """The states that enter the first block with a choice, and what random routers key on."""
        for group in groups_by_length(self.lengths, self.batch_tokens):
            inputs = self.batch(group)
            hidden_BTD = run_span(self.model, inputs, 0, stop)
            self.meter.units[self.places[group]] += stop
            flow = self.routing.current_flow()
            keys_B = flow.keys_B(len(group), self.device) - flow.seed
            ids_BT, mask_BT = inputs["input_ids"], inputs.get("attention_mask")
            lengths = self.lengths[group]
            yield _on_the_left(Pack(group, lengths, hidden_BTD, ids_BT, keys_B, {}), mask_BT)

    def _step(self, site: Site, stop: int | None, packs: deque[Pack]) -> deque[Pack]:
        """One choice: ask, and run the blocks up to the next one (``stop``; None = to the answers)
        on what must run; returns who is still under way."""
        fill = int(self.batch_tokens * FILL)
        running = Pool(fill, self.router.token_memory)
        waiting = Pool(fill, self.router.token_memory)
        under_way: list[Pack] = []

        def advance(ready: list[Pack], runs: bool) -> None:
            for pack in ready:
                under_way.extend(self._advance(pack, site, runs, stop))

        while packs:
            pack = packs.popleft()
            runs_B, gone_B = self._ask(site, pack)
            advance(running.add(pack, runs_B & ~gone_B), True)
            advance(waiting.add(pack, ~runs_B & ~gone_B), False)
        advance(running.flush(), True)
        advance(waiting.flush(), False)
        return deque(sorted(under_way, key=lambda pack: -pack.longest))

    def _advance(self, pack: Pack, site: Site, runs: bool, stop: int | None) -> Iterator[Pack]:
        """Run a site's block, or pass it by, and the blocks after it; the pack, if it goes on."""
        start = site.layer if runs else site.layer + 1
        self.meter.units[self.places[pack.rows]] += (site.depth if stop is None else stop) - start
        if runs:
            self.meter.ran(site.key, len(pack.rows))
            self.meter.spent += whole_flops(site.cost, pack.lengths)
            if self.router.weighs:
                self._weigh(pack, start, pack.memory.pop(WEIGHT))
                start += 1
        if stop is None:
            outputs = run_span(self.model, pack.inputs, start, None, pack.hidden_BTD)
            self.answer(pack.rows, outputs["logits"], pack.mask_BT)
            return
        if start < stop:
            pack.hidden_BTD = run_span(self.model, pack.inputs, start, stop, pack.hidden_BTD)
        yield pack

    def _weigh(self, pack: Pack, layer: int, weight_B: Tensor) -> None:
        """Run one block and scale what it changes."""
        before = pack.hidden_BTD
        after = run_span(self.model, pack.inputs, layer, layer + 1, before)
        pack.hidden_BTD = modulate(after, before, weight_B[:, None, None])

    def _ask(self, site: Site, pack: Pack) -> tuple[np.ndarray, np.ndarray]:
        """Which of a pack run this block, and which are done for good (their answer is stored)."""
        flow = self.routing.new_flow(self.model, pack.inputs)
        flow.seed = self.seed
        flow.known_keys_B = pack.keys_B
        flow.trace.shape_BT[site.stack] = (len(pack.rows), pack.longest)
        flow.trace.mask_BT[site.stack] = pack.mask_BT if pack.padded else None
        flow.memory = pack.memory
        route = self.router.decide(site, pack.hidden_BTD, flow)
        runs = route.active_BT[:, 0].cpu().numpy()
        if self.router.weighs:
            pack.memory[WEIGHT] = route.weight_BTU[:, 0, 0]
        done = self.router.answered(site, flow)
        if done is None:
            return runs, np.zeros(len(pack.rows), dtype=bool)
        gone_B, logits = done
        gone = gone_B.cpu().numpy()
        if gone.any():
            self.answer(pack.rows[gone], logits[gone_B], pack.mask_BT[gone_B])
        return runs, gone


def _on_the_left(pack: Pack, mask_BT: Tensor | None) -> Pack:
    """The pack without columns that are padding for all, and its real tokens on the left."""
    longest = int(pack.lengths.max())
    hidden_BTD, ids_BT = pack.hidden_BTD, pack.ids_BT
    pack.hidden_BTD, pack.ids_BT = hidden_BTD[:, :longest], ids_BT[:, :longest]
    if mask_BT is not None and not torch.equal(mask_BT[:, :longest].bool(), pack.mask_BT):
        pack.hidden_BTD = torch.zeros_like(pack.hidden_BTD)
        pack.hidden_BTD[pack.mask_BT] = hidden_BTD[mask_BT.bool()]
        pack.ids_BT = torch.zeros_like(pack.ids_BT)
        pack.ids_BT[pack.mask_BT] = ids_BT[mask_BT.bool()]
    return pack
