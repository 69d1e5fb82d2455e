"""Plain texts, written on: trained, routed, measured, judged document by document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
import transformers as hf

from turnout import UserError
from turnout.double.pipeline import train_tasks
from turnout.double.recipe import TasksRecipe
from turnout.measure.run import measure
from turnout.measure.table import cells
from turnout.predict import predict
from turnout.recipe import load
from turnout.tasks.language import LanguageConfig, LanguageTask, collate
from turnout.train.new_host import NewHost, new_host
from turnout.train.pipeline import train

NEXT = dict(zip(tiny.FILLER, [*tiny.FILLER[1:], tiny.FILLER[0]], strict=True))
RECIPE = """\
model: host
task:
  kind: language
  train: [one.txt, two.txt]
  validation: validation.txt
  test: test.jsonl
  max_length: 16
routers:
  - {kind: gate, site: ffn, granularity: token}
  - {kind: gate, site: attention, granularity: token}
train:
  epochs: 12
  routed_epochs: 4
  batch_size: 4
  precision: fp32
  learning_rate: 0.01
  evaluate_every: 1000
measure:
  budgets: [0.9, 0.5]
  static: [first-1]
  repeats: 2
  dtype: fp32
  bootstrap: 50
"""


def texts(count: int, seed: int) -> list[str]:
    """Each word says which comes next, but for the first, and where it ends."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        start, size = (int(n) for n in torch.randint(2, 10, (2,), generator=generator))
        words = [tiny.FILLER[start]]
        while len(words) < size:
            words.append(NEXT[words[-1]])
        found.append(" ".join(words))
    return found


def save(folder: Path, recipe: str = RECIPE) -> Path:
    for seed, name in enumerate(("one", "two", "validation")):
        (folder / f"{name}.txt").write_text("\n".join(texts(24, seed)) + "\n")
    rows = (json.dumps({"text": text}) + "\n" for text in texts(24, 3))
    (folder / "test.jsonl").write_text("".join(rows))
    torch.manual_seed(0)
    hf.LlamaForCausalLM(tiny.llama_config()).save_pretrained(folder / "host")
    tiny.tokenizer().save_pretrained(folder / "host")
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def test_it_runs_from_recipe_to_perplexity(tmp_path: Path) -> None:
    said: list[str] = []
    run = train(load(save(tmp_path)), tmp_path / "run", say=said.append, progress=False)
    assert "data: 48 train, 24 validation, 24 test" in said
    assert any("byte_likelihood on validation: " in line and "perplexity" in line for line in said)
    results = measure(run, run.recipe.measure, say=str, progress=False)
    dense = results.dense
    assert {arm.family for arm in results.arms} == {"dense", "routed", "random", "static"}
    # where a text ends is a guess; a model that has learned nothing has a perplexity of 30
    assert 1 < dense.report["perplexity"] < 4  # type: ignore[operator]
    assert dense.quality.metric == "byte_likelihood"
    bits = float(dense.report["bits_per_byte"])  # type: ignore[arg-type]
    assert dense.quality.value == pytest.approx(2**-bits)
    open_, half = (next(arm for arm in results.arms if arm.budget == b) for b in (0.9, 0.5))
    assert half.share < open_.share < 1 and half.flops_per_example < dense.flops_per_example
    by_quality = sorted(results.arms, key=lambda arm: arm.quality.value)
    assert by_quality == sorted(results.arms, key=lambda arm: -arm.report["perplexity"])  # type: ignore[operator]
    assert cells(results, dense)["perplexity"].main == f"{dense.report['perplexity']:.2f}"
    lines = [json.loads(line) for line in predict(run.path, str(tmp_path / "one.txt"), budget=1.0)]
    assert [line["text"] for line in lines] == texts(24, 0)
    assert all(1 < line["perplexity"] < 40 and line["tokens"] > 1 for line in lines)


def test_a_frozen_host_trains_its_routers_alone(tmp_path: Path) -> None:
    recipe = load(save(tmp_path), ["train.routed_freeze=host", "train.epochs=1"])
    run = train(recipe, tmp_path / "run", say=str, progress=False)
    dense, routed = run.load_dense().state_dict(), run.load_routed().state_dict()
    assert all(torch.equal(routed[name], value) for name, value in dense.items())
    assert any(name.startswith("turnout.") and value.any() for name, value in routed.items())


def test_random_skipping_is_trained_through_and_long_documents_are_joined(tmp_path: Path) -> None:
    routers = ["routers=[{kind: random-skip, granularity: token, site: ffn}]"]
    recipe = load(save(tmp_path), [*routers, "train.max_steps=2", "task.stride=6"])
    run = train(recipe, tmp_path / "run", say=str, progress=False)
    (tmp_path / "new.txt").write_text(" ".join(texts(12, 7)) + "\nfilm\n" + texts(1, 8)[0] + "\n")
    source = str(tmp_path / "new.txt")
    lines = [json.loads(line) for line in predict(run.path, source, budget=0.9, seed=1, trace=True)]
    tokens = [len(tiny.tokenizer()(line["text"])["input_ids"]) - 1 for line in lines]
    assert [line["tokens"] for line in lines] == tokens and tokens[0] > 40
    assert all(line["layers_run"] <= 2 for line in lines)
    half = [json.loads(line) for line in predict(run.path, source, budget=0.5, seed=1, trace=True)]
    assert half[0]["perplexity"] != lines[0]["perplexity"]
    assert half[0]["layers_run"] < lines[0]["layers_run"] < 2
    with pytest.raises(UserError, match="paths are averaged by their probabilities"):
        list(predict(run.path, source, budget=0.5, paths=2))


def test_a_new_host_learns_to_write(tmp_path: Path) -> None:
    path = save(tmp_path)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    texts_ = {"texts": [str(tmp_path / "one.txt")], "vocabulary": 300, "max_length": 32}
    page = {"family": "llama", "config": small, "tokenizer": texts_}
    new_host(NewHost.model_validate(page), tmp_path / "new")
    recipe = load(path, [f"model={tmp_path / 'new'}", "train.max_steps=2"])
    run = train(recipe, tmp_path / "run", say=str, progress=False)
    model, tokenizer = run.load_routed(), run.tokenizer()
    ids = tokenizer("the film", return_tensors="pt")["input_ids"][:, :-1]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:router .* decides for a whole")
def test_a_router_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    recipe = load(save(tmp_path), ["routers.0.granularity=sequence"])
    with pytest.raises(UserError, match="read what it is to predict: use granularity: token"):
        train(recipe, tmp_path / "run", say=str, progress=False)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    tiny.save_host(tmp_path / "bert")
    recipe = load(tmp_path / "recipe.yaml", [f"model={tmp_path / 'bert'}"])
    with pytest.raises(UserError, match="its tokens see later ones"):
        train(recipe, tmp_path / "run", say=str, progress=False)


def task(**fields: Any) -> LanguageTask:
    return LanguageTask(LanguageConfig(train="x", **fields))


def test_it_stands_alone_and_its_files_are_there(tmp_path: Path) -> None:
    path = save(tmp_path)
    page = "model: host\ntasks:\n  a: {kind: language, train: [one.txt], validation: two.txt}\n"
    (tmp_path / "tasks.yaml").write_text(page + "routers: [{kind: mixture}]\n")
    recipe = TasksRecipe.load(tmp_path / "tasks.yaml", [])
    with pytest.raises(UserError, match="use kind: words with guess: next there"):
        train_tasks(recipe, tmp_path / "run", say=str, progress=False)
    path.write_text(RECIPE.replace("two.txt", "tow.txt"))
    with pytest.raises(UserError, match=r"recipe\.yaml:4: task\.train: 'tow\.txt': no such file"):
        load(path)
    path.write_text(RECIPE.replace("max_length: 16", "max_length: 16\n  stride: 16"))
    with pytest.raises(UserError, match=r"stride: found 16; it must be below max_length \(16\)"):
        load(path)


def test_scores_agree_with_each_other() -> None:
    made = task()
    found = [np.array([-6.0, 3, 1, 10]), np.array([-2.0, 2, 2, 6])]
    total = made.counts(found, None).sum(0)
    report = made.report(found, None)
    assert report["perplexity"] == pytest.approx(np.exp(8 / 5))
    assert report["bits_per_byte"] == pytest.approx(8 / np.log(2) / 16)
    assert report["accuracy"] == 0.6 and report["tokens"] == 5 and report["bytes"] == 16
    assert made.score(total) == pytest.approx(np.exp(-8 / 16))
    assert "perplexity 4.95" in made.told(total)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_packed_documents_cost_what_each_costs_alone(family: str) -> None:
    words = len(tiny.WORDS)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    config: Any = {
        "llama": tiny.llama_config(),
        "gpt2": hf.GPT2Config(
            vocab_size=words, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3
        ),
        "gemma3": hf.Gemma3TextConfig(
            vocab_size=words, head_dim=8, num_key_value_heads=1, sliding_window=4, **sizes
        ),
        "opt": hf.OPTConfig(
            vocab_size=words,
            ffn_dim=24,
            word_embed_proj_dim=16,
            max_position_embeddings=32,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
            **sizes,
        ),
    }[family]
    model: Any = hf.AutoModelForCausalLM.from_config(config).eval()
    made, tokenizer = task(max_length=16), tiny.tokenizer()
    raw = datasets.Dataset.from_dict({"text": texts(9, 5)})
    made.meet(model)
    assert made.packs is (family != "opt")  # which counts positions by itself
    rows = [dict(row) for row in made.encode_train(raw, tokenizer)]  # type: ignore[call-overload]
    alone = [dict(row) for row in made.encode(raw, tokenizer)]  # type: ignore[call-overload]
    assert len(rows) < 9 if made.packs else len(rows) == 9
    labels = sum(label != -100 for row in rows for label in row["labels"])
    assert labels == sum(label != -100 for row in alone for label in row["labels"])
    with torch.no_grad():
        together = model(**collate(rows, 0), use_cache=False)["loss"] * labels
        each = [model(**collate([row], 0))["loss"] * (len(row["labels"]) - 1) for row in alone]
    assert float(together) == pytest.approx(float(sum(each)), rel=1e-5)
