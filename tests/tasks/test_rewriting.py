"""One text out of another: trained, routed, measured and written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers as hf
from sacrebleu.metrics import BLEU

from turnout.measure.run import measure
from turnout.predict import predict
from turnout.recipe import load
from turnout.tasks.rewriting import RewritingConfig, RewritingTask
from turnout.train.pipeline import train

OTHER = dict(zip(tiny.FILLER, tiny.FILLER[::-1], strict=True))
RECIPE = """\
model: host
task:
  kind: rewriting
  train: train.csv
  validation: validation.csv
  test: test.csv
  max_length: 12
  max_target: 12
routers:
  - {kind: gate, stack: encoder}
  - {kind: gate, stack: decoder, granularity: token, site: ffn}
train:
  epochs: 30
  routed_epochs: 4
  batch_size: 16
  precision: fp32
  learning_rate: 0.01
  evaluate_every: 1000
measure:
  budgets: [0.6]
  repeats: 3
  dtype: fp32
  bootstrap: 50
"""


def save(folder: Path) -> Path:
    """Texts of fillers, and their translations word by word; a small BART."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 160), ("validation", 24), ("test", 24)):
        lines = ["text,target"]
        for _ in range(count):
            size = 2 + int(torch.randint(3, (), generator=generator))
            picks = torch.randint(len(tiny.FILLER), (size,), generator=generator).tolist()
            words = [tiny.FILLER[n] for n in picks]
            lines.append(f"{' '.join(words)},{' '.join(OTHER[word] for word in words)}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    config = hf.BartConfig(
        vocab_size=len(tiny.WORDS),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        init_std=0.1,
    )
    hf.BartForConditionalGeneration(config).save_pretrained(folder / "host")
    tiny.tokenizer().save_pretrained(folder / "host")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def test_a_translation_is_learned_routed_and_measured(tmp_path: Path) -> None:
    run = train(load(save(tmp_path)), tmp_path / "run", say=str, progress=False)
    results = measure(run, run.recipe.measure, say=str, progress=False)
    dense, routed = results.dense, results.family("routed")[0]
    assert dense.quality.metric == "bleu" and dense.quality.value > 0.6
    assert dense.report["signature"].startswith("nrefs:1|case:mixed")
    assert 0 < routed.share < 0.9 and routed.flops_per_example < dense.flops_per_example
    assert results.family("random")[0].quality.metric == "bleu"
    (tmp_path / "new.txt").write_text("the film was slow\nfilm story\n")
    lines = [json.loads(line) for line in predict(run.path, str(tmp_path / "new.txt"), budget=1.0)]
    assert [line["text"] for line in lines] == ["the film was slow", "film story"]
    assert lines[1]["prediction"] == f"{OTHER['film']} {OTHER['story']}"


def task(**fields: Any) -> RewritingTask:
    return RewritingTask(RewritingConfig(train="x", **fields))


def test_bleu_is_that_of_sacrebleu() -> None:
    found = ["the cat sat on the mat today", "a dog ran very far away from here"]
    gold = ["the cat sat on a mat today", "the dog ran very far from here"]
    made = task()
    counts = made.counts(found, gold)
    assert counts.shape == (2, 10)
    expected = BLEU().corpus_score(found, [gold]).score / 100
    assert made.score(counts.sum(0)) == pytest.approx(expected)
    assert made.report(found, gold)["bleu"] == pytest.approx(expected)
    assert made.score(made.counts(gold, gold).sum(0)) == pytest.approx(1.0)


def test_rouge_is_a_mean_over_texts() -> None:
    made = task(metric="rouge")
    found = ["the cat sat", "a dog", "sat the cat"]
    gold = ["the cat sat", "no match", "the cat sat"]
    counts = made.counts(found, gold)
    rows = [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [2 / 3, 1.0, 0.5, 1.0]]
    np.testing.assert_allclose(counts, rows)
    assert made.headline == "rouge_l" and made.score(counts.sum(0)) == pytest.approx(5 / 9)
    report = made.report(found, gold)
    assert list(report) == ["rouge_l", "rouge_1", "rouge_2"]
    assert list(report.values()) == pytest.approx([5 / 9, 2 / 3, 1 / 2])
