"""What routers and their units take from the training data before training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeGuard

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, groups_by_length, inputs_of, lengths_of
from turnout.execute.mode import evaluating
from turnout.execute.span import SpanStop, run_span, runs_in_parts
from turnout.hosts.attach import blocks_of, find_family
from turnout.install import install
from turnout.routers.base import Router, RouterConfig
from turnout.routers.cluster import ClusterConfig, ClusterRouter, best_count, check_enough
from turnout.routers.gate import GateRouter
from turnout.routers.policy import PolicyConfig, PolicyRouter
from turnout.train.data import listed, usual_rows
from turnout.train.noise import size_from
from turnout.train.prices import measured_seconds
from turnout.train.search import imitate, search_routes
from turnout.train.teach_experts import teach_experts
from turnout.units.experts import split_by_data

BATCH, MOST = 32, 2048


def counted(
    host: PreTrainedModel,
    routers: Sequence[RouterConfig],
    rows: datasets.Dataset,
    collate: Collate,
    say: Callable[[str], None] = print,
) -> list[RouterConfig]:
    """The routers, with as many units for clusters as there are, where the data are to say."""
    found = list(routers)
    for place, config in enumerate(routers):
        if isinstance(config, ClusterConfig) and config.most is not None:
            counts = _counts(host, config, config.most)
            model = install(deepcopy(host), [config.with_units(counts[-1])])
            router = model.turnout.all_routers()[0]  # type: ignore[union-attr, operator]
            count, table = best_count(
                pooled_states(model, router, rows, collate), counts, config.seed
            )
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


def check_data(routers: Sequence[RouterConfig], rows: int) -> None:
    """Raise UserError for clusters that so few training rows cannot be fitted to."""
    for config in routers:
        if isinstance(config, ClusterConfig):
            units = {"expert": config.experts, "head": 1}.get(config.site, config.adapters)
            check_enough(config.most or units, rows, "training rows")


def check_stacks(model: PreTrainedModel) -> None:
    """Raise UserError for routers of a model that ``prepare`` could not run on its stacks."""
    routing: Any = model.turnout
    for router in routing.all_routers():
        if router.fits:
            _check_first(routing, router)
        imitates = isinstance(router, PolicyRouter) and router.config.imitate
        if imitates and not runs_in_parts(routing):
            raise UserError(
                "policy with imitate: routes are searched in hosts with one stack of blocks that "
                f"hand on one tensor, which {type(model).__name__} is not: leave out imitate"
            )


def _check_first(routing: Any, router: Router) -> None:
    site = router.sites[0]
    if site.kind != "output" and site.stack != next(iter(routing.stacks)):
        raise UserError(
            f"router {router.config.kind!r} looks at the inputs before training, and a decoder "
            "that reads an encoder has none of its own: set `stack: encoder`"
        )


def prepare(
    model: PreTrainedModel,
    rows: datasets.Dataset,
    collate: Collate,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Do what some routers need before they are trained, in place, as `turnout train` does it.

    Clusters are fitted; the neurons of experts are shared out where their split looks at data, and
    gates over them learn from the host which matter; seconds that routers pay in are measured; a
    policy with ``imitate`` learns the routes that a search finds. What noise is added to is
    measured. Routers that need none of it are left as they are.

    rows: encoded training rows, labelled. collate: makes a batch of some of them. say: is told what
    was found out. Returns that, by router. Raises UserError for an unrouted model, and for rows
    that a router cannot be fitted on: fewer than clusters, or with states that are not finite.
    """
    found = prepare_from(
        model,
        Source(
            lambda: batches(rows, collate),
            lambda: inputs_of(model, listed(usual_rows(rows, BATCH)), collate),
            lambda router: pooled_states(model, router, rows, collate),
        ),
        say,
    )
    routing: Any = model.turnout
    for name, router in routing.routers.items():
        if isinstance(router, PolicyRouter) and router.config.imitate:
            found[name] = _imitate(model, router, rows, collate, say)
    return found


@dataclass(frozen=True)
class Source:
    """What routers look at before they are trained. batches: of training rows, labelled, from the
    first on each time. usual: inputs of one of middling length. states: what a router's first site
    looks at, pooled, of every row, (N, D)."""

    batches: Callable[[], Iterator[dict[str, Tensor]]]
    usual: Callable[[], dict[str, Any]]
    states: Callable[[Router], np.ndarray]


def prepare_from(
    model: PreTrainedModel, source: Source, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """``prepare`` for data of any shape, but for policies with ``imitate``."""
    if not hasattr(model, "turnout"):
        raise UserError("this model is not routed; call turnout.install(model, ...) first")
    told: dict[str, dict[str, Any]] = {}
    routing: Any = model.turnout
    # clusters first: what is learned from passes of the whole model needs them
    for name, router in sorted(routing.routers.items(), key=lambda item: not item[1].fits):
        config = router.config
        if _splits(model, router) and config.split in ("coactivation", "importance"):
            split_by_data(model, source.batches(), config.split, sites=router.sites)
        if (seconds := getattr(router, "seconds", None)) is not None:
            seconds.copy_(measured_seconds(model, router.sites, source.usual()))
            each = ", ".join(f"{1000 * float(value):.1f}" for value in seconds)
            say(f"  milliseconds of each site: {each}")
        if _splits(model, router) and _ranks_tokens(router):
            held = teach_experts(model, router, source.batches())
            say(f"  the quarter of the experts that gates like best holds {held:.0%} of the whole")
        if router.fits:
            say(f"  {router.fit(source.states(router))}")
            told[name] = router.found
    if routing.noise:
        told["noise"] = {"sizes": size_from(model, source.batches())}
    return told


def _imitate(
    model: PreTrainedModel,
    router: PolicyRouter,
    rows: datasets.Dataset,
    collate: Collate,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Teach a policy the best routes of the first training rows."""
    some = rows.select(range(min(router.config.imitate, len(rows))))
    found = search_routes(model, listed(some), collate, router.config.price)
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


def batches(rows: datasets.Dataset, collate: Collate) -> Iterator[dict[str, Tensor]]:
    """The first rows, labelled, in their order."""
    for start in range(0, min(MOST, len(rows)), BATCH):
        yield collate(listed(rows.select(range(start, min(start + BATCH, len(rows))))))


@torch.inference_mode()
def pooled_states(
    model: PreTrainedModel, router: Router, rows: datasets.Dataset, collate: Collate
) -> np.ndarray:
    """The mean of the tokens that the first site looks at, normalised, of every row, (N, D)."""
    each, routing = listed(rows), _routing(model)
    _check_first(routing, router)
    found = np.empty((len(rows), router.host.hidden), dtype=np.float32)
    with evaluating(model):
        for group in groups_by_length(lengths_of(each), BATCH * 128):
            inputs = inputs_of(model, [each[i] for i in group], collate)
            hidden_BTD, mask_BT = _seen(model, router, inputs)
            found[group] = ClusterRouter.embed(hidden_BTD, mask_BT).cpu().numpy()
    return found


def _routing(model: PreTrainedModel) -> Any:
    return model.turnout


def _seen(
    model: PreTrainedModel, router: Router, inputs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The state that a router's first site looks at, and the mask of its real tokens."""
    site, routing = router.sites[0], _routing(model)
    if site.kind == "output":
        return head_input(model, inputs)
    hidden_BTD = run_span(model, inputs, 0, site.layer)
    flow = routing.new_flow(model, inputs)
    flow.enter(site.stack, hidden_BTD)
    return hidden_BTD, flow.mask_BT(site)


def head_input(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What the head of the task asked for reads, (B, T, D), T = 1 for whole texts, before any
    routing layer changes it; the mask of real tokens, None = all."""
    masks: list[Tensor | None] = []

    def stop(reader: Any, args: tuple[Any, ...]) -> None:
        masks.append(args[1])
        raise SpanStop(args[0])

    handle = model.reader.register_forward_pre_hook(stop)  # type: ignore[union-attr]
    try:
        model(**inputs)
    except SpanStop as end:
        mask_BT = masks[0]
        return end.hidden_BTD, None if mask_BT is None else mask_BT.bool()
    finally:
        handle.remove()
        if hasattr(model, "turnout"):
            _routing(model).close()
    raise AssertionError("a model of tasks reads")
