"""Bulk work depth by depth: rows at the same depth are pooled across batches.

When inputs leave early or skip layers one by one, a batch thins out and small operations eat the
gain. Here all inputs of a window move through the model together: at each depth the router is
asked, what must run is packed into full groups again (of like length, so little is padded), and
one block is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turnout.execute.batches import Batches, groups_by_length
from turnout.execute.span import run_span
from turnout.route import Site
from turnout.routers.base import Router


class Wavefront(Batches):
    """One window of inputs, moved through the model depth by depth.

    The states of all inputs lie packed in one flat store (tokens, D): a group is one gather and
    one write back. What the router remembers of each input lies in window-wide tensors.
    """

    def run(self) -> None:
        """Fill in the logits of the window."""
        self.routing: Any = self.model.turnout
        self.router: Router = self.routing.all_routers()[0]
        sites = {site.layer: site for site in self.router.sites}
        self.offsets = torch.from_numpy(np.cumsum(self.lengths) - self.lengths).to(self.device)
        self.sizes = torch.from_numpy(self.lengths).to(self.device)
        self.carried: dict[tuple[str, str], Tensor] = {}
        self.seed = self.routing.new_flow(self.model, {}).seed
        self._embed()
        alive = np.argsort(-self.lengths, kind="stable")
        for layer in range(self.router.sites[0].depth):
            alive = self._step(layer, sites.get(layer), alive)
        depth = self.router.sites[0].depth
        for group in self._groups(alive):
            outputs = run_span(self.model, self._inputs(group), depth, None, self._load(group))
            self.answer(group, outputs["logits"])

    def _step(self, layer: int, site: Site | None, alive: np.ndarray) -> np.ndarray:
        """One depth: ask, run the block on what must run; returns who is still under way."""
        key = None if site is None else site.key
        waiting = np.empty(0, dtype=np.int64)
        under_way = []
        for group in self._groups(alive):
            runs = group
            if site is not None:
                hidden_BTD = self._load(group)
                runs_B, gone_B = self._ask(site, group, hidden_BTD)
                under_way.append(group[~gone_B])
                runs = group[runs_B]
                if len(runs) == len(group):
                    self._advance(layer, key, group, hidden_BTD)
                    continue
            else:
                under_way.append(group)
            waiting = np.concatenate([waiting, runs])
            while self._fills(waiting):
                size = max(1, self.batch_tokens // int(self.lengths[waiting[0]]))
                self._advance(layer, key, waiting[:size], None)
                waiting = waiting[size:]
        if len(waiting):
            self._advance(layer, key, waiting, None)
        return np.concatenate(under_way) if under_way else alive

    def _fills(self, waiting: np.ndarray) -> bool:
        return len(waiting) > 0 and bool(
            len(waiting) * self.lengths[waiting[0]] >= self.batch_tokens
        )

    def _groups(self, ordered: np.ndarray) -> Iterator[np.ndarray]:
        """Groups of an order that is longest first already, and so is kept."""
        for places in groups_by_length(self.lengths[ordered], self.batch_tokens):
            yield ordered[places]

    def _embed(self) -> None:
        """The states that enter the first block, and what random routers key on."""
        store = None
        for group in groups_by_length(self.lengths, self.batch_tokens):
            inputs = self.batch(group)
            hidden_BTD = run_span(self.model, inputs, 0, 0)
            if store is None:
                rows = int(self.lengths.sum())
                store = hidden_BTD.new_empty(rows, hidden_BTD.shape[-1])
                self.keys = torch.zeros(len(self.lengths), dtype=torch.long, device=self.device)
                self.store = store
            self._write(group, hidden_BTD, inputs.get("attention_mask"))
            flow = self.routing.last_flow()
            at = torch.from_numpy(group).to(self.device)
            self.keys[at] = flow.keys_B(len(group), self.device) - flow.seed

    def _index(self, group: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of the store (B, T) for a group, and which of them are real."""
        at = torch.from_numpy(group).to(self.device)
        place_T = torch.arange(int(self.lengths[group].max()), device=self.device)
        mask_BT = place_T[None, :] < self.sizes[at][:, None]
        index_BT = self.offsets[at][:, None] + torch.where(mask_BT, place_T[None, :], 0)
        return index_BT, mask_BT

    def _load(self, group: np.ndarray) -> Tensor:
        index_BT, _ = self._index(group)
        return self.store.index_select(0, index_BT.reshape(-1)).view(*index_BT.shape, -1)

    def _write(
        self, group: np.ndarray, hidden_BTD: Tensor, source_BT: Tensor | None = None
    ) -> None:
        """Put a group's states back; source_BT: where its real tokens are (None: on the left)."""
        index_BT, mask_BT = self._index(group)
        if bool(mask_BT.all()):
            self.store.index_copy_(0, index_BT.reshape(-1), hidden_BTD.flatten(0, 1))
        else:
            source_BT = mask_BT if source_BT is None else source_BT.bool()
            self.store.index_copy_(0, index_BT[mask_BT], hidden_BTD[source_BT])

    def _inputs(self, group: np.ndarray) -> dict[str, Tensor]:
        """Stand-in inputs for a span that brings its own state: only their mask is read."""
        _, mask_BT = self._index(group)
        ids = torch.zeros(mask_BT.shape, dtype=torch.long, device=self.device)
        return {"input_ids": ids, "attention_mask": mask_BT.long()}

    def _advance(
        self, layer: int, key: str | None, group: np.ndarray, hidden_BTD: Tensor | None
    ) -> None:
        state = self._load(group) if hidden_BTD is None else hidden_BTD
        out = run_span(self.model, self._inputs(group), layer, layer + 1, state)
        self._write(group, out)
        self.meter.units[self.places[group]] += 1
        if key is not None:
            self.meter.ran(key, np.ones(len(group)), self.lengths[group])

    def _ask(
        self, site: Site, group: np.ndarray, hidden_BTD: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of a group run this block, and which are done for good (their answer is stored)."""
        at = torch.from_numpy(group).to(self.device)
        _, mask_BT = self._index(group)
        flow = self.routing.new_flow(self.model, {})
        flow.seed = self.seed
        flow.known_keys_B = self.keys[at]
        flow.trace.shape_BT[site.stack] = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        flow.trace.mask_BT[site.stack] = None if bool(mask_BT.all()) else mask_BT
        length = hidden_BTD.shape[1]
        for (key, name), stored in self.carried.items():
            if key == site.key:
                continue
            value = stored[at]
            per_token = name in self.router.token_memory
            flow.memory[(key, name)] = value[:, :length] if per_token else value
        runs_B = self.router.decide(site, hidden_BTD, flow).active_BT[:, 0]
        for full_key, value in flow.memory.items():
            if full_key[0] == site.key:
                self._carry(full_key, value, at)
        done = self.router.answered(site, flow)
        if done is None:
            return runs_B.cpu().numpy(), np.zeros(len(group), dtype=bool)
        gone_B, logits = done
        gone = gone_B.cpu().numpy()
        if gone.any():
            self.answer(group[gone], logits[gone_B])
        return runs_B.cpu().numpy(), gone

    def _carry(self, full_key: tuple[str, str], value: Tensor, at: Tensor) -> None:
        per_token = full_key[1] in self.router.token_memory
        if full_key not in self.carried:
            shape = list(value.shape)
            shape[0] = len(self.lengths)
            if per_token:
                shape[1] = int(self.lengths.max())
            self.carried[full_key] = value.new_zeros(shape)
        if per_token:
            self.carried[full_key][at, : value.shape[1]] = value
        else:
            self.carried[full_key][at] = value
