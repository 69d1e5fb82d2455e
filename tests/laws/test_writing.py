"""Hosts that write, law: the same tokens with and without a cache, alone and in the batch.

For every decoder and encoder-decoder family, every router that can decide token by token, every
way of searching and both kinds of cache. The slow one draws 200 cases a family.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, VOCAB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import turnout
from turnout.cost import trace_share
from turnout.errors import UserError

WRITERS = [host.name for host in HOSTS if host.causal]
ROUTERS: dict[str, dict[str, Any]] = {
    "gate": {"kind": "gate", "granularity": "token", "open": 0.0},
    "gate-ffn": {"kind": "gate", "granularity": "token", "site": "ffn", "open": 0.0},
    "gate-attention": {"kind": "gate", "granularity": "token", "site": "attention", "open": 0.0},
    "gate-experts": {
        "kind": "gate",
        "granularity": "token",
        "site": "expert",
        "experts": 4,
        "keep": "top-k",
        "top": 2,
    },
    "random-skip": {"kind": "random-skip", "rate": 0.5},
    "random-skip-token": {"kind": "random-skip", "granularity": "token", "rate": 0.5},
    "random-head": {"kind": "random-skip", "site": "head", "rate": 0.4},
    "random-jump": {"kind": "random-jump", "p": 0.7},
    "random-unit": {"kind": "random-unit", "site": "adapter"},
    "learned": {"kind": "token-exit", "criterion": "learned"},
    "confidence": {"kind": "token-exit", "criterion": "confidence"},
    "state": {"kind": "token-exit", "criterion": "state"},
    "patience": {"kind": "token-exit", "criterion": "patience"},
}
LEVELS = {"learned": 0.5, "confidence": 0.9, "state": 0.4, "patience": 0.7}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
}
LENGTH = 7


def routed(name: str, router: str) -> Any:
    """A host in double precision with a router whose weights make routes differ."""
    host = BY_NAME[name]
    spec = ROUTERS[router]
    host.has(spec.get("site", "layer"))
    if name == "pair" and router in ("learned", "confidence", "patience"):
        pytest.skip("its record does not say how states are read out")
    model: Any = host.build().double()
    turnout.install(model, {**spec, "stack": "decoder"})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    for each in model.turnout.all_routers():
        if each.scored:
            each.levels = [(0.5, LEVELS.get(router, 0.5))]
    model.turnout.seed = 3
    return model


def inputs_of(name: str) -> dict[str, Tensor]:
    """Three prompts, one of them shorter: padded on the left where the decoder goes on from it."""
    host = BY_NAME[name]
    found = host.inputs("right" if host.reads == "pairs" else "left")
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def write(model: Any, inputs: dict[str, Tensor], seed: int = 0, **options: Any) -> Tensor:
    """What is written, without the prompt; finished texts go on, so that all are as long."""
    torch.manual_seed(seed)
    ids = model.generate(**inputs, max_new_tokens=LENGTH, min_new_tokens=LENGTH, **options)
    return ids[:, -LENGTH:]


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One prompt of a batch, without its padding."""
    kept = inputs["attention_mask"][row].bool()
    return {key: value[row : row + 1, kept] for key, value in inputs.items()}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", WRITERS)
def test_same_tokens(name: str, router: str) -> None:
    model, inputs = routed(name, router), inputs_of(name)
    with model.turnout.at(0.5):
        for way, options in WAYS.items():
            slow = write(model, inputs, **options, use_cache=False)
            assert torch.equal(write(model, inputs, **options), slow), way
            if way != "sampled":  # rows of a batch share torch's generator
                one = write(model, alone(inputs, 1), **options)
                assert torch.equal(one[0], slow[1]), way
        static = write(model, inputs, **WAYS["greedy"], cache_implementation="static")
        assert torch.equal(static, write(model, inputs, **WAYS["greedy"]))
        sampled = write(model, alone(inputs, 1), **WAYS["sampled"])
        again = write(model, alone(inputs, 1), **WAYS["sampled"], use_cache=False)
        assert torch.equal(sampled, again)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("router", ["gate", "random-skip-token", "state"])
def test_something_is_skipped(name: str, router: str) -> None:
    model, inputs = routed(name, router), inputs_of(name)
    spent = []
    seen = model.turnout.watched(lambda flow: flow.trace and spent.append(trace_share(flow.trace)))
    with model.turnout.at(0.5), seen:
        write(model, inputs, do_sample=False)
    assert float(torch.stack(spent).mean()) < 0.95


@pytest.mark.parametrize("name", ["llama", "gemma3", "bart", "t5"])
def test_budget_of_each_prompt(name: str) -> None:
    model, inputs = routed(name, "gate"), inputs_of(name)
    budgets = [1.0, 0.5, 0.7]
    with model.turnout.at(budgets):
        together = write(model, inputs, do_sample=False)
        beams = write(model, inputs, do_sample=False, num_beams=2)
    for row, budget in enumerate(budgets):
        with model.turnout.at(budget):
            assert torch.equal(write(model, alone(inputs, row), do_sample=False)[0], together[row])
            one = write(model, alone(inputs, row), do_sample=False, num_beams=2)
            assert torch.equal(one[0], beams[row])
    assert model.turnout.budget_B is None
    with pytest.raises(UserError, match="3 budgets are set for 1 prompts"):  # noqa: SIM117
        with model.turnout.at(budgets):
            write(model, alone(inputs, 0))


def test_assisted_and_streamed() -> None:
    model, inputs = routed("llama", "gate"), alone(inputs_of("llama"), 0)
    helper: Any = BY_NAME["llama"].build().double()
    pieces: list[Tensor] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            pieces.append(value.flatten())

        def end(self) -> None:
            pieces.append(torch.tensor([], dtype=torch.long))

    with model.turnout.at(0.5):
        plain = write(model, inputs, do_sample=False)
        assert torch.equal(write(model, inputs, do_sample=False, assistant_model=helper), plain)
        write(model, inputs, do_sample=False, streamer=Streamer())
    assert torch.equal(torch.cat(pieces)[-LENGTH:], plain[0])


def test_answers_to_a_prompt_take_paths_of_their_own() -> None:
    model, inputs = routed("llama", "random-skip"), alone(inputs_of("llama"), 0)
    paths: list[Tensor] = []

    def note(flow: Any) -> None:
        paths.append(torch.cat([route.weight_BTU[:, 0] for route in flow.trace.values()], 1))

    with model.turnout.watched(note):
        write(model, inputs, do_sample=True, num_return_sequences=8)
        assert len(paths[-1].unique(dim=0)) > 1 and all(torch.equal(p, paths[-1]) for p in paths)
        paths.clear()
        write(model, inputs, do_sample=False, num_beams=4)
        assert len(paths[-1].unique(dim=0)) == 1
        model.turnout.seed = None
        paths.clear()
        for seed in range(8):
            write(model, inputs, seed, do_sample=False)
    assert len({tuple(path.flatten().tolist()) for path in paths}) > 1


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def check_cases(name: str, data: st.DataObject) -> None:
    """A random case of a family: prompts, padding, router, way, cache, budget, seed."""
    draw = data.draw
    router = draw(st.sampled_from(list(ROUTERS)))
    try:
        model = routed(name, router)
    except pytest.skip.Exception:
        return
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    batch, longest = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ids = torch.randint(3, VOCAB, (batch, longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    if BY_NAME[name].reads != "pairs":
        mask = mask.flip(1)
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    options = dict(WAYS[draw(st.sampled_from(list(WAYS)))])
    model.turnout.seed = draw(st.integers(0, 1000))
    with model.turnout.at(draw(st.sampled_from([0.3, 0.5, 0.8, 1.0]))):
        slow = write(model, inputs, **options, use_cache=False)
        assert torch.equal(write(model, inputs, **options), slow)
        if not options["do_sample"]:
            row = draw(st.integers(0, batch - 1))
            assert torch.equal(write(model, alone(inputs, row), **options)[0], slow[row])
            if "num_beams" not in options:
                static = write(model, inputs, **options, cache_implementation="static")
                assert torch.equal(static, slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_two_hundred_cases(name: str) -> None:
    check_cases(name)
