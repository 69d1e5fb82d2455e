"""Hosts, law: a routed encoder-decoder generates with a cache what it generates without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.execute.generate import generate_bulk

SPECS: dict[str, list[dict[str, Any]]] = {
    "encoder": [{"kind": "gate", "stack": "encoder", "open": 0.3}],
    "decoder": [{"kind": "gate", "stack": "decoder", "granularity": "token", "open": 0.3}],
    "parts": [
        {"kind": "gate", "stack": "decoder", "granularity": "token", "site": "ffn", "open": 0.3},
        {
            "kind": "gate",
            "stack": "encoder",
            "granularity": "token",
            "site": "attention",
            "open": 0.3,
        },
    ],
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", ["t5", "bart", "marian", "pair"])
def test_generate(name: str, spec: list[dict[str, Any]], beams: int) -> None:
    host = BY_NAME[name]
    model: Any = host.build()
    turnout.install(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for router in model.turnout.all_routers():
            router.bias.zero_()
    model.turnout.budget = 0.5
    inputs = {key: host.inputs()[key] for key in ("input_ids", "attention_mask")}
    options: dict[str, Any] = dict(
        max_new_tokens=8,
        min_new_tokens=6,
        do_sample=False,
        num_beams=beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    fast = model.generate(**inputs, **options, use_cache=True)
    slow = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(fast.sequences, slow.sequences) and len(fast.scores) >= 6
    for one, other in zip(fast.scores, slow.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    kept = int(inputs["attention_mask"][1].sum())
    alone = model.generate(**{k: v[1:2, :kept] for k, v in inputs.items()}, **options)
    assert fast.sequences[1].tolist()[: alone.sequences.shape[1]] == alone.sequences[0].tolist()
    with turnout.trace() as trace:
        model.generate(**inputs, **options)
    used = torch.cat([route.weight_BTU.flatten() for route in trace.values()])
    assert (used == 0).any()
    turnout.uninstall(model)
    assert len(model.generate(**inputs, **options).sequences) == 3


def test_work_is_counted_where_only_the_decoder_is_routed() -> None:
    host = BY_NAME["bart"]
    model: Any = host.build()
    turnout.install(model, SPECS["decoder"])
    rows = [{"input_ids": [5, 6, 7, 8], "attention_mask": [1] * 4} for _ in range(3)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    found = generate_bulk(model, rows, collate, max_new_tokens=4, do_sample=False)
    assert found.share == 1.0 and len(found.logits) == 3
    model.turnout.budget = 0.01
    for router in model.turnout.all_routers():
        router.levels = [(0.0, 2.0)]
    assert generate_bulk(model, rows, collate, max_new_tokens=4, do_sample=False).share < 0.7
