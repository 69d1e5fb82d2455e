"""A quarter of the neurons of Gemma-3-270m: perplexity on WikiText-2, as it is and tuned."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import Benchmark, Row
from gemma import gemma
from quarter import CHANCE, GATE, SHARE, STATES, prune, times
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import set_seed

import turnout
from turnout.train.teach_experts import teach_experts
from turnout.units.experts import split_by_data

WINDOW, JUDGED = 256, 64  # tokens of a window, and those of them that a step of training judges


def windows(tokenizer: Any, file: Path, most: int) -> Tensor:
    """Text as windows of tokens, each after the begin token, (N, T)."""
    ids = tokenizer(file.read_text(encoding="utf-8")[: 8 * most], add_special_tokens=False)
    flat = torch.tensor(ids["input_ids"][:most])
    flat = flat[: len(flat) // WINDOW * WINDOW].view(-1, WINDOW)
    return torch.cat([torch.full((len(flat), 1), tokenizer.bos_token_id), flat], 1)


def log_probs(model: Any, ids_BT: Tensor, places_P: Tensor | int = 0) -> Tensor:
    """Of the next tokens at some places (0: at all), (B * P, V): weights in fp32, products in
    bf16, for all alike."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids_BT[:, :-1], logits_to_keep=places_P)["logits"]
    return logits.flatten(0, 1).log_softmax(-1, dtype=torch.float32)


@torch.inference_mode()
def perplexity(model: Any, ids_NT: Tensor) -> float:
    """Of the tokens after the first of each window."""
    total = 0.0
    for part in ids_NT.split(4):
        total -= float(log_probs(model, part).gather(1, part[:, 1:].reshape(-1, 1)).sum())
    return math.exp(total / ids_NT[:, 1:].numel())


def tune(model: Any, dense: Any, ids_NT: Tensor, rate: float, title: str) -> None:
    """One pass over the windows: the language loss and the dense host's answers. Both are asked at
    some places, since the head, of 262,144 words, takes most of a step; the embeddings, which are
    the head too, stay."""
    model.requires_grad_(True)
    model.get_input_embeddings().weight.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    drawn = torch.Generator().manual_seed(0)
    steps = ids_NT[torch.randperm(len(ids_NT), generator=drawn)].split(8)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / len(steps))
    )
    model.train()
    start = time.perf_counter()
    for step, part in enumerate(steps):
        places = torch.randperm(part.shape[1] - 1, generator=drawn)[:JUDGED]
        with torch.no_grad():
            wanted = log_probs(dense, part, places)
        found = log_probs(model, part, places)
        loss = F.nll_loss(found, part[:, 1:][:, places].flatten())
        loss = loss + F.kl_div(found, wanted, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"  {title}: step {step} of {len(steps)}, loss {float(loss.detach()):.3f}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    model.eval()


def language(benchmark: Benchmark, arms: Sequence[str]) -> Iterator[list[Row]]:
    """The rows of each arm on WikiText-2: validation text to learn from, test text to judge by."""
    folder = benchmark.folder("wikitext2")
    dense, tokenizer = gemma()
    seen = windows(tokenizer, folder / "valid.txt", 2_000 if benchmark.quick else 96_000)
    test = windows(tokenizer, folder / "test.txt", 2_000 if benchmark.quick else 30_000)
    learn = [{"input_ids": part[:, :-1], "labels": part[:, :-1]} for part in seen[:80].split(4)]

    def change(arm: str, model: Any) -> Any:
        set_seed(0)
        if arm == "pruned":
            prune(model, learn)
            return model
        turnout.install(model, [{**(GATE if arm == "experts" else CHANCE), "split": "random"}])
        split_by_data(model, learn, "coactivation")
        if arm == "experts":
            held = teach_experts(model, model.turnout.all_routers()[0], learn)
            print(f"  the best quarter of the experts holds {held:.0%} of the whole", flush=True)
        model.turnout.budget = SHARE
        return model

    base = perplexity(dense, test)
    for arm in arms:
        model, rows = change(arm, deepcopy(dense)).eval(), []
        for state in STATES:
            if state == "trained":
                tune(model, dense, seen, 1e-4, arm)
            spent = times(
                dense, {arm: model}, {"input_ids": test[:4, :-1]}, 1 if benchmark.quick else 7
            )
            rows.append(
                {
                    "host": "gemma3-270m",
                    "seed": 0,
                    "arm": f"{arm}, {state}",
                    "perplexity": perplexity(model, test),
                    "dense_perplexity": base,
                    **spent[arm],
                }
            )
        yield rows
