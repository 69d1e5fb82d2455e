"""Early exit: an input (or a token) leaves at the first layer whose own head is sure enough.

Heads are distilled from the last layer: of the dense host, or their own model's. Criteria:
``confidence`` (FastBERT, arXiv 2004.02178; DeeBERT, arXiv 2004.12993), ``patience`` (PABEE, arXiv
2006.04152: as many heads in a row agree), ``learned`` (a probe that predicts whether the head
differs from the last layer; BERxiT). Per token it is token-level early exit for labelling (arXiv
2105.13878): a token that left keeps its state, which stays visible to the others (their halt-and-
copy).

Symbols: our score is FastBERT's uncertainty (1 - the largest probability), our threshold its
speed; PABEE's counter c is our streak, with score 1 / (1 + c). ``cascade`` adds the earlier
head's logits, detached, to a head's own (as in zero time waste, arXiv 2106.05409).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from turnout.errors import UserError
from turnout.flow import IGNORED, Flow
from turnout.objectives.exits import exits
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig
from turnout.routers.exit_head import ExitHead, Pool


class ExitConfig(RouterConfig):
    """criterion: what makes a head sure. pool: how a head reads a sequence (``auto``: ``attend``
    for encoders, the last token for decoders). hidden: width of a head's hidden layer, 0 = linear.
    teacher: whose answers heads learn: the ``dense`` host's, where they are known, or those of the
    ``last`` layer of the model itself (self-distillation, as FastBERT). A head stands before each
    layer it serves; layer 0's head reads the embeddings."""

    kind: Literal["exit"] = "exit"
    site: Literal["layer"] = "layer"
    granularity: Literal["sequence", "token"] = "sequence"
    criterion: Literal["confidence", "patience", "learned"] = "confidence"
    pool: Literal["auto", "attend", "mean", "first", "last"] = "auto"
    hidden: Annotated[int, Field(ge=0)] = 128
    cascade: bool = True
    teacher: Literal["dense", "last"] = "dense"


class ExitRouter(Router):
    """Keeps a sequence or token running until one head is sure."""

    Config: ClassVar[type[RouterConfig]] = ExitConfig
    scored = True
    config: ExitConfig
    unlabelled: Tensor

    def __init__(self, config: ExitConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        if not host.labels:
            raise UserError(
                "router 'exit' needs a host with a classification head (num_labels logits a "
                "sequence or token); load the model with AutoModelForSequenceClassification "
                "or AutoModelForTokenClassification"
            )
        if config.granularity == "token" and not host.per_token:
            raise UserError("router 'exit' with granularity: token needs a host that labels tokens")
        if len({site.stack for site in sites}) > 1:
            raise UserError("router 'exit' serves one stack; set `stack: encoder` or `decoder`")
        pool: Pool = "last" if host.causal else "attend"
        if host.per_token:
            pool = "token"
        elif config.pool != "auto":
            pool = config.pool
        self.heads = nn.ModuleList(
            ExitHead(host.hidden, config.hidden, host.labels, pool, config.cascade and place > 0)
            for place in range(len(sites))
        )
        if config.criterion == "confidence":
            self.ceiling = 1.0 - 1.0 / host.labels  # of the largest of C probabilities
        learned = config.criterion == "learned"
        self.probe = nn.Parameter(torch.zeros(len(sites), 4)) if learned else None
        if host.per_token:
            self.token_memory = frozenset({"logits", "streak"})
            # Ids that stood without a label in training: markers, and pieces inside a word. No
            # head learned to be sure of them, so a sentence does not wait for them.
            self.register_buffer("unlabelled", torch.zeros(host.vocabulary, dtype=torch.bool))
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place = self._place[site.key]
        mask_BT = flow.mask_BT(site)
        earlier = self._recall(place, flow)
        logits = self._logits(place, hidden_BTD, mask_BT, earlier.get("logits"))
        if flow.training:
            flow.memory[(site.key, "logits")] = logits
            if self.probe is not None:
                flow.memory[(site.key, "score")] = self._score(place, logits, None)
            ones = torch.ones(hidden_BTD.shape[0], 1, 1, device=hidden_BTD.device)
            return Route(site, ones)
        streak = None
        if self.config.criterion == "patience":
            streak = self._streak(logits, earlier)
            flow.memory[(site.key, "streak")] = streak
        score = self._score(place, logits, streak)
        if self.host.per_token and self.config.granularity == "sequence":
            score = score.masked_fill(~self._labelled(flow, mask_BT, score), 0.0).amax(1)
        alive = score > self.level(flow.budget)
        if "alive" in earlier:
            alive = alive & earlier["alive"]
            gone = ~earlier["alive"]
            logits = torch.where(self._like(gone, logits), earlier["logits"], logits)
        flow.memory[(site.key, "alive")] = alive
        flow.memory[(site.key, "logits")] = logits
        per_token = score.ndim == 2
        weight = alive.float() if per_token else alive.float()[:, None]
        return Route(site, weight[:, :, None], (score if per_token else score[:, None])[:, :, None])

    def study(self, rows: datasets.Dataset) -> None:
        """Note which token ids never carry a label, where the rows label tokens."""
        if not self.host.per_token or not self.host.vocabulary or not len(rows):
            return
        ids, labels = (
            torch.from_numpy(np.concatenate([np.asarray(row) for row in rows[name]]))
            for name in ("input_ids", "labels")
        )
        bare = torch.zeros_like(self.unlabelled)
        bare[ids] = True
        bare[ids[labels != IGNORED]] = False
        self.unlabelled.copy_(bare)

    def _labelled(self, flow: Flow, mask_BT: Tensor | None, score_BT: Tensor) -> Tensor:
        """Which tokens a sentence waits for (B, T): real ones that may carry a label."""
        waits = torch.ones_like(score_BT, dtype=torch.bool) if mask_BT is None else mask_BT
        ids = flow.inputs.get("input_ids")
        if len(self.unlabelled) and isinstance(ids, Tensor) and ids.shape == score_BT.shape:
            return waits & ~self.unlabelled[ids]
        return waits

    def finish(self, outputs: Any, flow: Flow) -> Any:
        """Put the answers of what left early into the host's logits. Its ``loss``, where labels
        were given, stays that of the last layer's logits."""
        if flow.training or not self.sites:
            return outputs
        if isinstance(outputs, tuple):
            raise UserError("router 'exit' puts its answers into the outputs: use return_dict=True")
        last = self._recall(len(self.sites), flow)
        final = outputs["logits"]
        left = self._like(~last["alive"], final)
        outputs["logits"] = torch.where(left, last["logits"].to(final.dtype), final)
        return outputs

    def answered(self, site: Site, flow: Flow) -> tuple[Tensor, Tensor]:
        return ~flow.memory[(site.key, "alive")], flow.memory[(site.key, "logits")]

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        heads = [flow.memory[(site.key, "logits")] for site in self.sites]
        keys = [(site.key, "score") for site in self.sites]
        probes = [flow.memory[key] for key in keys if key in flow.memory]
        given = teacher if self.config.teacher == "dense" else None
        return {"exits": exits(heads, logits, labels, given, probes)}

    def _recall(self, place: int, flow: Flow) -> dict[str, Tensor]:
        """What the head before this one remembered."""
        if place == 0:
            return {}
        key = self.sites[place - 1].key
        names = ("alive", "logits", "streak")
        return {name: flow.memory[(key, name)] for name in names if (key, name) in flow.memory}

    def _logits(
        self, place: int, hidden_BTD: Tensor, mask_BT: Tensor | None, before: Tensor | None
    ) -> Tensor:
        return self.heads[place](hidden_BTD, mask_BT, before if self.config.cascade else None)

    def _score(self, place: int, logits: Tensor, streak: Tensor | None) -> Tensor:
        """How much the rest of the model is needed, 0 (sure) .. 1."""
        if streak is not None:
            return 1.0 / (1.0 + streak)
        probability = logits.softmax(-1)
        if self.probe is None:
            return 1.0 - probability.amax(-1)
        best = probability.topk(min(2, probability.shape[-1]), dim=-1).values
        entropy = torch.special.entr(probability).sum(-1)
        features = torch.stack(
            [torch.ones_like(entropy), best[..., 0], best[..., 0] - best[..., -1], entropy], -1
        )
        # not a matrix product: autocast would make that bf16
        return (features.detach() * self.probe[place].float()).sum(-1).sigmoid()

    @staticmethod
    def _streak(logits: Tensor, earlier: dict[str, Tensor]) -> Tensor:
        """Number of heads in a row that agree with this one, itself not counted."""
        label = logits.argmax(-1)
        if "streak" not in earlier:
            return torch.zeros_like(label, dtype=torch.float32)
        same = label == earlier["logits"].argmax(-1)
        return torch.where(same, earlier["streak"] + 1, 0.0)

    @staticmethod
    def _like(flag: Tensor, logits: Tensor) -> Tensor:
        return flag.reshape(*flag.shape, *[1] * (logits.ndim - flag.ndim))
