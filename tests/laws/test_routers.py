"""Routers: every law over every line of the table. A new router is one line, or some, of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers as hf
from hosts_table import BY_NAME, COMMON
from torch import Tensor
from transformers import PreTrainedModel

import turnout
from turnout.cost import trace_share
from turnout.install import parse_router
from turnout.route import Trace
from turnout.routers import ROUTERS

GRAINS = ("batch", "sequence", "token")
Spec = dict[str, Any]


def table() -> dict[str, Spec]:
    """Name to spec."""
    rows: dict[str, Spec] = {}
    for grain in GRAINS:
        for site in ("layer", "attention", "ffn", "head"):
            rows[f"gate-{site}-{grain}"] = dict(kind="gate", site=site, granularity=grain, open=0.3)
        rows[f"gate-mlp-{grain}"] = dict(
            kind="gate", granularity=grain, shape="mlp", hidden=8, shared=True, open=0.3
        )
        rows[f"random-skip-{grain}"] = dict(kind="random-skip", granularity=grain, rate=0.4)
        for site in ("attention", "ffn", "head", "expert"):
            rows[f"random-skip-{site}-{grain}"] = dict(
                kind="random-skip", site=site, granularity=grain, rate=0.4, experts=4
            )
    for grain in GRAINS:
        rows[f"gate-recurrent-{grain}"] = dict(
            kind="gate", granularity=grain, shape="recurrent", hidden=32, open=0.0
        )
        rows[f"gate-expert-{grain}"] = dict(
            kind="gate", site="expert", experts=4, granularity=grain, open=0.3
        )
        rows[f"gate-top-k-{grain}"] = dict(
            kind="gate", site="expert", experts=4, granularity=grain, keep="top-k", noise=True
        )
    rows["gate-expert-choice"] = dict(
        kind="gate", site="expert", experts=4, granularity="token", keep="expert-choice"
    )
    rows["gate-capacity"] = dict(
        kind="gate", site="expert", experts=4, granularity="token", capacity=1.0, open=0.3
    )
    rows["gate-modulated"] = dict(kind="gate", modulate=True, open=0.3)
    rows["gate-copied"] = dict(
        kind="gate",
        site="expert",
        experts=4,
        granularity="token",
        keep="top-k",
        top=2,
        split="copied",
    )
    for site in ("adapter", "expert", "head"):
        rows[f"cluster-{site}"] = dict(kind="cluster", site=site, experts=4)
        rows[f"random-unit-{site}"] = dict(kind="random-unit", site=site, experts=4)
    rows["random-unit-anew"] = dict(kind="random-unit", fixed=False, top=2)
    rows["cluster-top-2"] = dict(kind="cluster", top=2)
    for form in ("lora", "bottleneck"):
        rows[f"gate-{form}"] = dict(kind="gate", site="adapter", form=form, modulate=True, open=0.3)
        rows[f"random-skip-{form}"] = dict(kind="random-skip", site="adapter", form=form, rate=0.4)
    rows["attention-adapter"] = dict(kind="attention", site="adapter", width=8, combine=True)
    rows["gate-by-threshold"] = dict(kind="gate", temperature=0.0, open=0.3)
    for grain in GRAINS[:2]:
        for distribution in ("uniform", "geometric", "learned"):
            rows[f"random-jump-{distribution}-{grain}"] = dict(
                kind="random-jump", granularity=grain, distribution=distribution, p=0.5
            )
    for grain in GRAINS[:2]:
        for site in ("layer", "attention", "ffn", "head", "expert"):
            rows[f"attention-{site}-{grain}"] = dict(
                kind="attention", site=site, granularity=grain, width=8, combine=False, experts=4
            )
        rows[f"attention-top-k-{grain}"] = dict(
            kind="attention", granularity=grain, width=64, keep="top-k", combine=False
        )
    rows["attention-combined"] = dict(kind="attention", width=8, combine=True)
    for received in ("class", "all"):
        for keep in ("threshold", "top-k"):
            rows[f"token-attention-{received}-{keep}"] = dict(
                kind="token-attention", granularity="token", received=received, keep=keep, open=0.0
            )
    rows["token-attention-hidden"] = dict(
        kind="token-attention", granularity="token", visible=False, open=0.0
    )
    rows["token-attention-ffn"] = dict(
        kind="token-attention", granularity="token", site="ffn", keep="top-k"
    )
    for decide in ("layer", "input"):
        rows[f"policy-{decide}"] = dict(
            kind="policy", decide=decide, hidden=8, curriculum=0.0, open=0.3
        )
    for site in ("layer", "attention", "ffn"):
        rows[f"q-learning-{site}"] = dict(
            kind="q-learning", site=site, hidden=8, replay=16, batch=8
        )
    for site in ("attention", "ffn", "head", "expert", "adapter"):
        rows[f"policy-{site}"] = dict(
            kind="policy", site=site, experts=4, hidden=8, curriculum=0.0, open=0.3
        )
    for criterion in ("confidence", "patience", "learned"):
        for grain in GRAINS[1:]:
            rows[f"exit-{criterion}-{grain}"] = dict(
                kind="exit", criterion=criterion, granularity=grain, hold_last=0
            )
    for criterion in ("learned", "confidence", "state", "patience"):
        rows[f"token-exit-{criterion}"] = dict(
            kind="token-exit", criterion=criterion, granularity="token"
        )
    rows["exit-first-hidden"] = dict(kind="exit", pool="first", hidden=8, cascade=False)
    for site in ("output", "adapter"):
        for reads in ("input", "task", "both"):
            rows[f"mixture-{site}-{reads}"] = dict(kind="mixture", site=site, reads=reads)
        rows[f"mixture-{site}-token"] = dict(
            kind="mixture", site=site, reads="both", top=2, granularity="token"
        )
        rows[f"mixture-{site}-top-1"] = dict(kind="mixture", site=site, top=1)
    rows["mixture-private"] = dict(kind="mixture", adapters=6, shared=1, private=2, noise=0.5)
    rows["gate-output"] = dict(kind="gate", site="output", adapters=3, open=0.3)
    rows["random-unit-output"] = dict(kind="random-unit", site="output", adapters=3)
    rows["cluster-output"] = dict(kind="cluster", site="output", adapters=3, top=2)
    return rows


def has_dial(spec: Spec) -> bool:
    """Does the budget say what runs: not where it is always as many."""
    return spec["kind"] not in ("cluster", "random-unit", "mixture") and "top" not in spec


ROUTERS_ = table()
all_routers = pytest.mark.parametrize("spec", ROUTERS_.values(), ids=ROUTERS_.keys())
alone = pytest.mark.parametrize(
    "spec",
    [spec for spec in ROUTERS_.values() if spec.get("granularity") != "batch"],
    ids=[name for name, spec in ROUTERS_.items() if spec.get("granularity") != "batch"],
)


with_dial = pytest.mark.parametrize(
    "spec",
    [spec for spec in ROUTERS_.values() if has_dial(spec)],
    ids=[name for name, spec in ROUTERS_.items() if has_dial(spec)],
)


def test_every_router_is_in_the_table() -> None:
    assert {spec["kind"] for spec in ROUTERS_.values()} == set(ROUTERS) - {"fixed"}


def routed(spec: Spec) -> PreTrainedModel:
    """A host of four layers that fits the router, with router weights that make routes differ."""
    config = hf.BertConfig(
        **{**COMMON, "num_hidden_layers": 4},
        num_labels=3,
        hidden_dropout_prob=0.0,  # in training only what routers draw may differ
        attention_probs_dropout_prob=0.0,
    )
    by_token = spec.get("granularity") == "token"
    torch.manual_seed(0)
    if spec["kind"] == "mixture" or spec.get("site") == "output":
        heads = {kind: turnout.HeadConfig(kind=kind, width=3) for kind in ("class", "tag")}
        several = turnout.with_heads(hf.BertModel(config, add_pooling_layer=False), heads)
        several.task = "tag" if by_token else "class"
        turnout.install(several.eval(), [spec])
        shake(several)
        return several
    if spec["kind"] == "token-exit":
        causal = hf.LlamaConfig(**{**COMMON, "num_hidden_layers": 4})
        writer = turnout.install(hf.LlamaForCausalLM(causal).eval(), [spec])
        shake(writer)
        return writer
    tokens = spec["kind"] == "exit" and by_token
    cls = hf.BertForTokenClassification if tokens else hf.BertForSequenceClassification
    model = turnout.install(cls(config).eval(), [spec])
    shake(model)
    return model


def shake(model: PreTrainedModel, scale: float = 0.5) -> None:
    """Give the routers' parameters some noise, the same each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def batch(size: int = 6, length: int = 10, shortest: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """Sequences of many lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (size, length), generator=generator)
    lengths = torch.randint(shortest, length + 1, (size,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def routes(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], seed: int = 3, budget: float = 0.6
) -> Trace:
    """The trace of one pass, in the mode the model is in."""
    model.turnout.seed = seed
    torch.manual_seed(seed)
    with torch.no_grad(), model.turnout.at(budget), turnout.trace() as trace:
        model(**inputs)
    return trace


def weights(trace: Trace) -> dict[str, Tensor]:
    """Weights of the real tokens by site key: (B, T, U), zeros on padding, or (B, 1, U)."""
    found = {}
    for key, route in trace.items():
        weight_BTU = route.weight_BTU
        if weight_BTU.shape[1] > 1:
            weight_BTU = weight_BTU * trace.valid_BT(route.site.stack)[:, :, None]
        found[key] = weight_BTU
    return found


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys() and one
    for key in one:
        assert torch.equal(one[key] != 0, two[key] != 0), key
        torch.testing.assert_close(one[key], two[key])


@all_routers
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_weights_are_finite_and_not_negative(spec: Spec, training: bool) -> None:
    model = routed(spec).train(training)
    seen = []
    for seed, budget in enumerate((1.0, 0.7, 0.5, 0.3, 0.0)):
        for route in routes(model, batch(), seed, budget).values():
            assert route.weight_BTU.isfinite().all() and (route.weight_BTU >= 0).all()
            for extra in (route.score_BTU, route.log_prob_BT):
                assert extra is None or extra.isfinite().all()
            seen.append(route.weight_BTU.flatten())
    if not (training and spec["kind"].endswith("exit")):  # in training their heads see every layer
        assert 0 < float(torch.cat(seen).mean()) < 1


@all_routers
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_shape_says_granularity(spec: Spec, training: bool) -> None:
    trace = routes(routed(spec).train(training), batch())
    grain = spec.get("granularity", "sequence")
    some = [weight for weight in weights(trace).values()]
    for route in trace.values():
        tokens = route.weight_BTU.shape[1]
        everything = bool((route.weight_BTU == 1).all())
        assert route.weight_BTU.shape == (6, tokens, route.site.units)
        assert tokens == 1 or (grain == "token" and tokens == 10)
        assert grain != "token" or tokens == 10 or everything
        if grain == "batch":
            assert (route.weight_BTU == route.weight_BTU[:1]).all()
    alike = spec["kind"] == "exit" or spec.get("reads") == "task"  # of one task, that is
    if grain == "sequence" and not training and not alike:
        assert any((weight != weight[:1]).any() for weight in some)


@alone
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_padding_never_changes_a_route(spec: Spec, training: bool) -> None:
    model = routed(spec).train(training)
    inputs = batch()
    more = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in inputs.items()}
    more["input_ids"][:, -2:] = 7  # what stands in the padding does not matter
    short, long = weights(routes(model, inputs)), weights(routes(model, more))
    cut = {key: weight[:, : short[key].shape[1]] for key, weight in long.items()}
    assert_same(short, cut)
    assert all((weight[:, 10:] == 0).all() for weight in long.values())


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("kind", ["gate", "random-skip", "random-jump", "exit"])
def test_left_padding_never_changes_a_route(kind: str, grain: str) -> None:
    if (kind, grain) in (("random-jump", "token"), ("exit", "token"), ("exit", "batch")):
        pytest.skip("this router does not decide so")
    host = BY_NAME["llama"].build()
    if kind == "exit":  # needs a head that classifies
        torch.manual_seed(0)
        host = hf.LlamaForSequenceClassification(BY_NAME["llama"].config()).eval()
    model = turnout.install(host, [dict(kind=kind, granularity=grain)])
    shake(model)
    inputs = {key: value[:2] for key, value in BY_NAME["llama"].inputs("none").items()}
    more = {key: torch.nn.functional.pad(value, (4, 0)) for key, value in inputs.items()}
    short, long = weights(routes(model, inputs)), weights(routes(model, more))
    assert_same(short, {key: weight[:, -short[key].shape[1] :] for key, weight in long.items()})


@alone
def test_batched_equals_one_by_one(spec: Spec) -> None:
    model, inputs = routed(spec), batch()
    together = weights(routes(model, inputs))
    for row in range(6):
        length = int(inputs["attention_mask"][row].sum())
        single = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        one = weights(routes(model, single))
        assert_same(
            one, {key: together[key][row : row + 1, : one[key].shape[1]] for key in together}
        )


@all_routers
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_same_seed_same_route(spec: Spec, training: bool) -> None:
    model = routed(spec).train(training)
    first = weights(routes(model, batch()))
    assert_same(first, weights(routes(model, batch())))
    if spec["kind"].startswith("random") and not spec.get("fixed", spec["kind"] == "random-unit"):
        others = [weights(routes(model, batch(), seed=seed)) for seed in range(4, 12)]
        assert any(not torch.equal(first[key], other[key]) for other in others for key in first)


@all_routers
def test_config_goes_through_json(spec: Spec) -> None:
    model = routed(spec)
    config = parse_router(spec)
    again = parse_router(json.loads(config.model_dump_json()))
    assert again == config
    stored = json.loads(json.dumps(model.config.to_dict()["turnout"]))
    assert [parse_router(one) for one in stored["routers"]] == [config]
    assert_same(
        weights(routes(model, batch())),
        weights(routes(routed(config.model_dump(mode="json")), batch())),
    )


@all_routers
def test_gradient_reaches_every_parameter(spec: Spec) -> None:
    """With a sum of all that a router gives to objectives."""
    model = routed(spec).train()
    torch.manual_seed(3)
    with turnout.trace() as trace:
        model(**batch())
    given = [route.weight_BTU for route in trace.values()]
    given += [route.score_BTU for route in trace.values() if route.score_BTU is not None]
    given += [route.log_prob_BT for route in trace.values() if route.log_prob_BT is not None]
    flow, labels, logits = model.turnout.current_flow(), torch.arange(6) % 3, torch.zeros(6, 3)
    if spec["kind"] == "token-exit":
        labels, logits = torch.arange(54).view(6, 9), torch.randn(6, 9, 60)
    given += [value for key, value in flow.memory.items() if key[1] != "state"]
    (router,) = model.turnout.all_routers()
    if not (router.host.per_token or spec["kind"] == "exit"):
        given += list(router.losses(flow, logits, labels, None).values())
    parts = [value.float().square().sum() for value in given if value.requires_grad]
    own = dict(router.named_parameters())
    assert bool(parts) == bool(own) or spec["kind"] == "token-exit"  # teaches the host
    if not parts:
        return
    torch.stack(parts).sum().backward()
    for name, parameter in own.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@with_dial
def test_share_falls_with_the_budget(spec: Spec) -> None:
    """On average over draws; what is skipped changes the state that later routers see, so some
    slack is left. A random router reads a budget of 1 as: its own rate, whatever that is."""
    model = routed(spec)
    many = 20 if spec.get("granularity") == "batch" else 2
    batches = [batch(2 if many > 2 else 48, seed=seed) for seed in range(many)]
    shares = []
    for budget in (0.99 if spec["kind"].startswith("random") else 1.0, 0.75, 0.5, 0.25, 0.0):
        traces = [routes(model, inputs, seed, budget) for seed, inputs in enumerate(batches)]
        shares.append(sum(float(trace_share(trace)) for trace in traces) / many)
    for before, after in itertools.pairwise(shares):
        assert after <= before + 0.05, shares
    assert shares[0] > 0.95 and shares[-1] < 0.8, shares


def least_share(model: PreTrainedModel) -> float:
    """What a router cannot go below: random-jump runs each layer that it jumps to."""
    (router,) = model.turnout.all_routers()
    return router.share(4, 1.0) if router.config.kind == "random-jump" else 0.0


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    "spec",
    [
        dict(kind="random-skip", granularity="sequence"),
        dict(kind="random-skip", granularity="token", site="ffn"),
        dict(kind="random-jump"),
        dict(kind="random-jump", distribution="geometric"),
    ],
    ids=lambda spec: "-".join(spec.values()),
)
def test_random_routers_spend_the_budget(spec: Spec, budget: float) -> None:
    model = routed(spec)
    trace = routes(model, batch(size=400, shortest=10), budget=budget)
    ran = torch.stack([weight.mean() for weight in weights(trace).values()]).mean()
    assert float(ran) == pytest.approx(max(budget, least_share(model)), abs=0.04)


def dense_at_one(spec: Spec) -> bool:
    """Random routers read a budget of 1 as their own rate, and some weigh what they keep."""
    adds = spec["kind"] in ("cluster", "random-unit", "mixture")
    if adds or spec.get("site") in ("adapter", "output") or "top" in spec:
        return False
    weighs = spec.get("combine") or spec.get("modulate") or spec.get("capacity")
    return not spec["kind"].startswith("random") and not weighs


@pytest.mark.parametrize("name", [n for n, s in ROUTERS_.items() if dense_at_one(s)])
def test_budget_one_is_the_dense_host(name: str) -> None:
    spec = ROUTERS_[name]
    model = routed(spec)
    with torch.no_grad():
        out = model(**batch()).logits
        turnout.uninstall(model)
        plain = model(**batch()).logits
    if spec.get("site") == "expert":  # its neurons stand in another order
        torch.testing.assert_close(out, plain)
    else:
        assert torch.equal(out, plain)


@all_routers
def test_it_trains_under_autocast(spec: Spec) -> None:
    """Units hand on what they found in the format that it came in."""
    model = routed(spec).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch())["logits"]
    logits.float().square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)
