"""What routers and their units take from the training data before training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import groups_by_length, inputs_of, lengths_of
from turnout.execute.span import run_span
from turnout.hosts.attach import blocks_of, find_family
from turnout.install import install
from turnout.routers.base import Router, RouterConfig
from turnout.routers.cluster import ClusterConfig, ClusterRouter, best_count
from turnout.routers.gate import GateRouter
from turnout.routers.policy import PolicyConfig, PolicyRouter
from turnout.train.data import Data, listed
from turnout.train.prices import measured_seconds
from turnout.train.search import imitate, search_routes
from turnout.train.teach_experts import teach_experts
from turnout.units.experts import split_by_data

BATCH, MOST = 32, 2048


def counted(
    host: PreTrainedModel,
    routers: Sequence[RouterConfig],
    data: Data,
    say: Callable[[str], None] = print,
) -> list[RouterConfig]:
    """The routers, with as many units for clusters as there are, where the data are to say."""
    found = list(routers)
    for place, config in enumerate(routers):
        if isinstance(config, ClusterConfig) and config.most is not None:
            counts = _counts(host, config, config.most)
            model = install(deepcopy(host), [config.with_units(counts[-1])])
            router = model.turnout.all_routers()[0]  # type: ignore[union-attr, operator]
            count, table = best_count(pooled_states(model, router, data), counts, config.seed)
            told = ", ".join(f"{each}: {value:,.0f}" for each, value in table.items())
            say(f"  {count} clusters have the lowest Bayesian information criterion ({told})")
            found[place] = config.with_units(count)
    return found


def _counts(host: PreTrainedModel, config: ClusterConfig, most: int) -> list[int]:
    """The numbers of clusters up to ``most`` that the units of this host can have; UserError where
    there is none."""
    counts = range(max(2, config.top), most + 1)
    if config.site != "expert" or config.split == "copied":
        return list(counts)
    neurons = {view.neuron_count() for view in blocks_of(host, find_family(host))}
    fitting = [count for count in counts if not any(each % count for each in neurons)]
    if not fitting:
        raise UserError(
            f"router 'cluster': no number from {counts.start} to {most} divides the neurons of "
            f"this host's networks ({', '.join(map(str, sorted(neurons)))}): raise most, or use "
            "split: copied"
        )
    return fitting


def check_counts(host: PreTrainedModel, routers: Sequence[RouterConfig]) -> None:
    """Raise UserError where ``counted`` would find no number of clusters to try."""
    for config in routers:
        if isinstance(config, ClusterConfig) and config.most is not None:
            _counts(host, config, config.most)


def check_alone(routers: Sequence[RouterConfig]) -> None:
    """Raise UserError for what ``prepare`` could not do beside other routers."""
    for config in routers:
        if isinstance(config, PolicyConfig) and config.imitate and len(routers) > 1:
            raise UserError(
                "policy with imitate: routes are searched on the host as it is, so it must be the "
                "only router"
            )


def prepare(
    model: PreTrainedModel, data: Data, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Share out the neurons of experts where their split looks at data, fit clusters, and teach a
    policy the routes that a search finds; in place. Returns what was found out, by router."""
    told: dict[str, dict[str, Any]] = {}
    routing: Any = model.turnout
    for name, router in routing.routers.items():
        config = router.config
        if _splits(model, router) and config.split in ("coactivation", "importance"):
            split_by_data(model, batches(data), config.split, sites=router.sites)
        if (seconds := getattr(router, "seconds", None)) is not None:
            batch = inputs_of(model, listed(data.usual_rows(BATCH)), data.collate)
            seconds.copy_(measured_seconds(model, router.sites, batch))
            each = ", ".join(f"{1000 * float(value):.1f}" for value in seconds)
            say(f"  milliseconds of each site: {each}")
        if _splits(model, router) and _ranks_tokens(router):
            held = teach_experts(model, router, batches(data))
            say(f"  the quarter of the experts that gates like best holds {held:.0%} of the whole")
        if router.fits:
            say(f"  {router.fit(pooled_states(model, router, data))}")
            told[name] = router.found
        if isinstance(router, PolicyRouter) and router.config.imitate:
            told[name] = _imitate(model, router, data, say)
    return told


def _imitate(
    model: PreTrainedModel, router: PolicyRouter, data: Data, say: Callable[[str], None]
) -> dict[str, Any]:
    """Teach a policy the best routes of the first training rows."""
    some = data.train.select(range(min(router.config.imitate, len(data.train))))
    found = search_routes(model, listed(some), data.collate, router.config.price)
    losses = imitate(router, found)
    facts = {
        "texts": len(some),
        "reward_of_everything": float(found.dense_N.mean()),
        "reward_of_found_routes": float(found.reward_N.mean()),
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    say(
        f"  routes of {len(some):,} texts: reward {facts['reward_of_found_routes']:.3f} where "
        f"running everything has {facts['reward_of_everything']:.3f}"
    )
    return facts


def _splits(model: PreTrainedModel, router: Router) -> bool:
    """Do the experts of this router share the neurons of dense networks."""
    site, routing = router.sites[0], model.turnout
    return site.kind == "expert" and site.place in routing.orders  # type: ignore[union-attr, operator]


def _ranks_tokens(router: Router) -> TypeGuard[GateRouter]:
    """Is this a gate that can be taught to rank experts for each token."""
    return (
        isinstance(router, GateRouter)
        and router.config.keep == "top-k"
        and router.config.shape != "recurrent"
        and not router.config.shared
        and router.config.granularity == "token"
    )


def batches(data: Data) -> Iterator[dict[str, Tensor]]:
    """The first training rows, labelled, in their order."""
    for start in range(0, min(MOST, len(data.train)), BATCH):
        rows = data.train.select(range(start, min(start + BATCH, len(data.train))))
        yield data.collate(listed(rows))


@torch.inference_mode()
def pooled_states(model: PreTrainedModel, router: Router, data: Data) -> np.ndarray:
    """The mean of the real tokens that enter the first site, normalised, of every training row,
    (N, D)."""
    site, rows = router.sites[0], listed(data.train)
    routing: Any = model.turnout
    if site.stack != next(iter(routing.stacks)):
        raise UserError(
            f"router {router.config.kind!r} looks at the inputs before training, and a decoder "
            "that reads an encoder has none of its own: set `stack: encoder`"
        )
    found = np.empty((len(rows), router.host.hidden), dtype=np.float32)
    for group in groups_by_length(lengths_of(rows), BATCH * 128):
        inputs = inputs_of(model, [rows[i] for i in group], data.collate)
        hidden_BTD = run_span(model, inputs, 0, site.layer)
        flow = routing.new_flow(model, inputs)
        flow.enter(site.stack, hidden_BTD)
        found[group] = ClusterRouter.embed(hidden_BTD, flow.mask_BT(site)).cpu().numpy()
    return found
