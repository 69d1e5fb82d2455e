"""Several tasks, trained from a recipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file
from tokenizers import normalizers
from transformers import TrainerCallback
from typer.testing import CliRunner

from turnout import UserError
from turnout.cli import app
from turnout.double import pipeline
from turnout.double.answers import answers
from turnout.double.data import TasksData
from turnout.double.measure import measure_tasks
from turnout.double.pipeline import train_tasks
from turnout.double.predict import predict_tasks
from turnout.double.recipe import TasksRecipe
from turnout.double.run import open_tasks_run
from turnout.double.transfer import transfer
from turnout.files import read_json
from turnout.recipe import load
from turnout.train.data import encode

RECIPE = """\
model: host
tasks:
  mood: {kind: classification, train: train.csv, validation: validation.csv, test: test.csv}
  names: {kind: ner, train: train.conll, validation: validation.conll, test: test.conll}
routers:
  - {kind: mixture, reads: both, adapters: 3, top: 2}
train:
  epochs: 10
  batch_size: 8
  precision: fp32
  learning_rate: 0.005
  head_learning_rate: 0.03
  router_learning_rate: 0.01
measure:
  repeats: 2
"""


def save_recipe(folder: Path, text: str = RECIPE) -> Path:
    tiny.save_host(folder / "host")
    tiny.save_reviews(folder)
    tiny.save_entities(folder)
    path = folder / "tasks.yaml"
    path.write_text(
        text.replace("}\n  names", ", max_length: 16}\n  names").replace(
            "test.conll}", "test.conll, max_length: 16}"
        ),
        encoding="utf-8",
    )
    return path


def train(folder: Path, out: str, *overrides: str) -> Any:
    recipe = TasksRecipe.load(folder / "tasks.yaml", overrides)
    return train_tasks(recipe, folder / out, say=str, progress=False)


def test_tasks_are_learned_beside_each_other(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run")
    model, tasks = run.load(), open_tasks_run(run.path).tasks()
    assert list(tasks) == model.tasks == ["mood", "names"]
    assert tasks["mood"].labels == ["negative", "positive"]
    scores = read_json(run.path / "training.json")["validation"]
    assert scores["mood"] > 0.8 and scores["names"] > 0.8
    assert not run.checkpoints.exists()
    said: list[str] = []
    train_tasks(run.recipe, run.path, say=said.append, progress=False)
    assert "trained already" in said[0]


def test_a_frozen_backbone_stays_as_it_is(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    model = train(tmp_path, "run", "train.strategy=router", "train.epochs=1").load()
    before = load_file(tmp_path / "host" / "model.safetensors")
    after = model.backbone.state_dict()
    assert len(after) > 20 and all(
        torch.equal(value, before[name]) for name, value in after.items()
    )
    last = train(tmp_path, "last", "train.strategy=partial", "train.blocks=1", "train.epochs=1")
    moved = {
        n for n, v in last.load().backbone.state_dict().items() if not torch.equal(v, before[n])
    }
    assert moved and all(name.startswith("encoder.layer.1.") for name in moved)


def stopped(folder: Path, out: str, epochs: int, *overrides: str) -> None:
    """A training that stops after some epochs."""

    class Stop(Exception):
        pass

    class Stopper(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch >= epochs + 1:  # the checkpoint of an epoch comes after this call
                raise Stop

    fit = pipeline.fit

    def stopping(*args: Any, **kwargs: Any) -> Any:
        return fit(*args, **{**kwargs, "callbacks": [*kwargs["callbacks"], Stopper()]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "fit", stopping)
        with pytest.raises(Stop):
            train(folder, out, *overrides)


def test_a_stopped_training_goes_on_exactly(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    whole = train(tmp_path, "whole", "train.weighting=uncertainty").load().state_dict()
    stopped(tmp_path, "cut", 2, "train.weighting=uncertainty")
    again = train(tmp_path, "cut", "train.weighting=uncertainty").load().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.weights={sports: 2}", "no task 'sports'; the tasks are mood, names"),
        ("tasks.mood.kind=clasification", "did you mean 'classification'"),
        ("tasks.mood.labels=3", "tasks.mood.labels: unknown field"),
        ("tasks.mood.train=gone.csv", "tasks.mood.train: 'gone.csv': no such file"),
        ("train.named=[encoder]", "named: says what learns with strategy: partial"),
        ("train.strategy=half", "train.strategy: found 'half'"),
    ],
)
def test_mistakes_are_told_by_place(tmp_path: Path, change: str, message: str) -> None:
    path = save_recipe(tmp_path)
    with pytest.raises(UserError, match=message):
        TasksRecipe.load(path, [change])


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    path = save_recipe(tmp_path)
    path.write_text(path.read_text().replace("  names:", "  mood:"))
    with pytest.raises(UserError, match="this field stands twice"):
        TasksRecipe.load(path)


def test_the_command_line_serves_several_tasks(tmp_path: Path) -> None:
    path, out = save_recipe(tmp_path), str(tmp_path / "run")
    runner = CliRunner()
    done = runner.invoke(app, ["train", str(path), "--out", out, "--quiet"])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["inspect", out])
    assert done.exit_code == 0 and "negative, positive" in done.output and "mixture" in done.output
    done = runner.invoke(app, ["measure", out, "repeats=3", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "mood" in done.output and "One pass that answers several tasks" in done.output
    assert (tmp_path / "run" / "use.svg").read_text().count("mood") >= 1
    found = read_json(tmp_path / "run" / "results.json")
    assert [task["name"] for task in found["tasks"]] == ["mood", "names"]
    assert [each["tasks"] for each in found["passes"]] == [1, 2]
    assert found["passes"][1]["gflops"] > found["passes"][0]["gflops"] > found["plain_gflops"] > 0
    for task in found["tasks"]:
        assert len(task["use"]) == 3 and sum(task["use"]) == pytest.approx(1)
    texts = tmp_path / "texts.txt"
    texts.write_text("Ann met the lovely actor in Rome\nBob met the dull actor\n")
    done = runner.invoke(app, ["predict", out, "--input", str(texts)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["mood"]["prediction"] for line in lines] == ["positive", "negative"]
    assert [each["text"] for each in lines[0]["names"]["entities"]] == ["Ann", "Rome"]
    done = runner.invoke(app, ["predict", out, "-i", str(texts), "--tasks", "names"])
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["names"]] * 2
    done = runner.invoke(app, ["predict", out, "-i", str(texts), "--tasks", "x"])
    assert done.exit_code == 2 and "has no task 'x'; its tasks are mood, names" in done.output


def test_a_language_model_is_the_routing_layer(tmp_path: Path) -> None:
    path = save_recipe(tmp_path)
    sizes = dict(vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=2)
    more = dict(num_key_value_heads=1, head_dim=6, intermediate_size=20)
    torch.manual_seed(0)
    hf.LlamaModel(hf.LlamaConfig(**sizes, **more)).save_pretrained(tmp_path / "language")
    path.write_text(path.read_text() + "bridge: {model: language, layers: 2}\n")
    run = train(tmp_path, "run", "train.epochs=2")
    model = run.load()
    assert len(model.bridge.blocks.layers) == 2 and bool(model.bridge.scale != 0)
    assert model.bridge.blocks.get_input_embeddings().num_embeddings == 1
    before = load_file(tmp_path / "language" / "model.safetensors")
    blocks = model.bridge.blocks.state_dict()
    assert torch.equal(blocks["layers.1.mlp.up_proj.weight"], before["layers.1.mlp.up_proj.weight"])
    ids = torch.tensor([[2, 5, 9, 3]])
    with torch.no_grad():
        first = model(input_ids=ids, tasks=["names"]).logits["names"]
        torch.testing.assert_close(
            run.load()(input_ids=ids, tasks=["names"]).logits["names"], first
        )
        model.bridge.scale.zero_()
        other = model(input_ids=ids, tasks=["names"]).logits["names"]
    assert not torch.allclose(first, other, atol=1e-3)
    whole = train(tmp_path, "whole", "bridge.frozen=false", "train.epochs=1")
    moved = whole.load().bridge.blocks.state_dict()["layers.1.mlp.up_proj.weight"]
    assert not torch.equal(moved, before["layers.1.mlp.up_proj.weight"])


def test_casing_tells_names_apart(tmp_path: Path) -> None:
    """Names that are words too, but for their first letter: an uncased host alone cannot know."""
    save_recipe(tmp_path)
    made: Any = tiny.tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    made.save_pretrained(tmp_path / "host")
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "validation", "test"):
        blocks = []
        for _ in range(48):
            picks = torch.randint(len(tiny.FILLER), (5,), generator=generator).tolist()
            upper = (torch.rand(5, generator=generator) < 0.3).tolist()
            words = [
                tiny.FILLER[n].title() if up else tiny.FILLER[n]
                for n, up in zip(picks, upper, strict=True)
            ]
            tags = ["B-PER" if up else "O" for up in upper]
            blocks.append("\n".join(f"{w} {t}" for w, t in zip(words, tags, strict=True)))
        (tmp_path / f"{name}.conll").write_text("\n\n".join(blocks) + "\n")
    scores = {}
    for casing in ("true", "false"):
        run = train(tmp_path, f"run-{casing}", f"casing={casing}", "train.epochs=8")
        scores[casing] = read_json(run.path / "training.json")["validation"]["names"]
    assert scores["true"] > 0.95 and scores["false"] < 0.6
    (tmp_path / "new.txt").write_text("the Film was The story\n")
    (line,) = predict_tasks(tmp_path / "run-true", str(tmp_path / "new.txt"), tasks=["names"])
    assert [e["text"] for e in json.loads(line)["names"]["entities"]] == ["Film", "The"]


def test_transfer_is_a_gain_over_a_task_alone(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run", "train.epochs=1")
    matrix = transfer(run, say=str, progress=False)
    assert {name: list(gains) for name, gains in matrix.items()} == {
        "mood": ["names"],
        "names": ["mood"],
    }
    alone = read_json(run.path / "transfer" / "mood" / "training.json")["validation"]["mood"]
    both = read_json(run.path / "transfer" / "mood+names" / "training.json")["validation"]["mood"]
    assert matrix["mood"]["names"] == both - alone
    assert transfer(run, say=str, progress=False) == matrix  # nothing is trained twice
    only = f"{{kind: classification, train: {tmp_path}/train.csv, max_length: 16}}"
    one = train(tmp_path, "one", f"tasks={{mood: {only}}}", "train.max_steps=1")
    with pytest.raises(UserError, match="at least two"):
        transfer(one, say=str, progress=False)


@pytest.mark.parametrize(
    "router",
    [
        "{kind: cluster, site: output, adapters: 3, top: 2}",
        "{kind: gate, site: output, adapters: 3}",
        "{kind: random-unit, site: output, adapters: 3}",
        "{kind: mixture, site: adapter, reads: task, adapters: 3, rank: 2}",
    ],
)
def test_other_routers_serve_tasks_too(router: str, tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run", f"routers=[{router}]", "train.epochs=2")
    results = measure_tasks(run, say=str)
    assert [task.name for task in results.tasks] == ["mood", "names"]
    model = run.load()
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 3, 0]])
    mask = (ids > 0).long()
    with torch.no_grad():
        for name in model.tasks:
            model.task = name
            alone = model(input_ids=ids, attention_mask=mask).logits
            found = answers(model, [{"input_ids": [2, 5, 9, 3]}], run.tokenizer(), model.tasks)
            torch.testing.assert_close(
                torch.tensor(found[name][0]), alone[0, :4] if alone.ndim == 3 else alone[0]
            )


WORDS = """\
model: host
tasks:
  mood: {kind: classification, train: train.csv, validation: validation.csv, max_length: 16}
  words: {kind: words, train: train.csv, validation: validation.csv, max_length: 16, share: 0.3}
routers:
  - {kind: mixture, reads: both, adapters: 2}
train: {epochs: 12, batch_size: 8, precision: fp32, learning_rate: 0.005, head_learning_rate: 0.01}
measure: {repeats: 2, time_examples: 16}
"""


def masked_host(folder: Path, config: Any = None) -> None:
    tiny.save_host(folder / "host", config)
    tokenizer = tiny.tokenizer()
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(folder / "host")
    tiny.save_reviews(folder)


def test_words_are_guessed_beside_another_task(tmp_path: Path) -> None:
    masked_host(tmp_path)
    (tmp_path / "tasks.yaml").write_text(WORDS)
    run = train(tmp_path, "run")
    scores = read_json(run.path / "training.json")["validation"]
    assert scores["mood"] > 0.8
    assert scores["words"] > 0.15  # there are thirty words
    (mood, words) = measure_tasks(run, say=str).tasks
    assert mood.quality > 0.8 and words.report["perplexity"] < 30
    (tmp_path / "ask.txt").write_text("the [UNK] was very fine\na film\n")
    first, second = (
        json.loads(line) for line in predict_tasks(run.path, str(tmp_path / "ask.txt"))
    )
    assert len(first["words"]["prediction"]) == 1 and second["words"]["prediction"] == []
    assert first["words"]["prediction"][0]["word"] in tiny.WORDS


def test_words_that_would_be_seen_are_not_to_be_guessed(tmp_path: Path) -> None:
    masked_host(tmp_path)
    text = WORDS.replace("share: 0.3", "guess: next")
    (tmp_path / "tasks.yaml").write_text(text)
    with pytest.raises(UserError, match="looks to both sides: use guess: masked"):
        train(tmp_path, "run")
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    masked_host(
        tmp_path,
        hf.LlamaConfig(
            **sizes,
            vocab_size=len(tiny.WORDS),
            intermediate_size=24,
            max_position_embeddings=32,
            pad_token_id=0,
        ),
    )
    run = train(tmp_path, "run", "train.epochs=1")
    (tmp_path / "ask.txt").write_text("the film was very\n")
    (line,) = (json.loads(line) for line in predict_tasks(run.path, str(tmp_path / "ask.txt")))
    assert len(line["words"]["prediction"]) == 1
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        "model: host\ntask: {kind: words, train: train.csv}\nrouters: [{kind: gate}]\n"
    )
    with pytest.raises(UserError, match="for recipes of `tasks:`"):
        load(alone)


@pytest.mark.parametrize("more", ["", ", {kind: mixture}"], ids=["alone", "beside mixture"])
def test_the_budget_of_a_recipe_is_kept(more: str, tmp_path: Path) -> None:
    save_recipe(tmp_path)
    routers = f"routers=[{{kind: gate, site: layer, granularity: sequence}}{more}]"
    run = train(tmp_path, "run", routers, "train.budget=0.5", "train.epochs=2")
    model = run.load()
    assert model.turnout.budget == 0.5
    gate = model.turnout.all_routers()[0]
    assert len(gate.levels) > 1 and min(share for share, _ in gate.levels) < 0.6


@pytest.mark.parametrize("strategy", ["lora", "prompt", "discriminative"])
def test_every_strategy_goes_on_exactly(strategy: str, tmp_path: Path) -> None:
    save_recipe(tmp_path)
    how = [f"train.strategy={strategy}", "train.epochs=4"]
    whole = train(tmp_path, "whole", *how).load().state_dict()
    stopped(tmp_path, "cut", 2, *how)
    again = train(tmp_path, "cut", *how).load().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    early = [*how, "train.patience=1", "train.evaluate_every=4", "train.epochs=3"]
    assert train(tmp_path, "early", *early).model.is_dir()


def test_labels_that_changed_under_a_training_are_told(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    stopped(tmp_path, "run", 2)
    path = tmp_path / "train.csv"
    path.write_text(path.read_text() + "a story,neutral\n")
    with pytest.raises(UserError, match=r"task 'mood': its head was made for other labels"):
        train(tmp_path, "run")
    assert train(tmp_path, "other", "train.epochs=1").labels["mood"][1] == "neutral"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('routers=[{"kind": "policy", "imitate": 8}]', "imitate: its search is for recipes of one"),
        ('routers=[{"kind": "cluster", "most": 4}]', "give their number as adapters"),
        (
            'routers=[{"kind": "policy"}]|tasks.names={"kind": "number", "train": "train.csv"}',
            r"right and wrong answers, and task 'names' \(number\) has none",
        ),
    ],
)
def test_what_needs_the_rows_of_one_task_is_refused(
    change: str, message: str, tmp_path: Path
) -> None:
    save_recipe(tmp_path)
    with pytest.raises(UserError, match=message):
        train(tmp_path, "run", *change.split("|"))
    assert not (tmp_path / "run").exists()


def test_names_that_pytorch_keeps_are_refused(tmp_path: Path) -> None:
    path = save_recipe(tmp_path)
    path.write_text(path.read_text().replace("  mood:", "  keys:"))
    with pytest.raises(UserError, match="task 'keys': PyTorch needs this name"):
        train(tmp_path, "run")


def test_standard_input_serves_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run", "train.epochs=1")
    text = b"the film was very fine\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    (line,) = predict_tasks(run.path, "-")
    (tmp_path / "ask.txt").write_bytes(text)
    (same,) = predict_tasks(run.path, str(tmp_path / "ask.txt"))
    assert json.loads(line) == json.loads(same) and set(json.loads(line)) == {"mood", "names"}


def test_tasks_with_different_tokenizers_are_refused(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    recipe = TasksRecipe.load(tmp_path / "tasks.yaml")
    tasks, raw = pipeline.load_tasks(recipe, str)
    one, other = tiny.tokenizer(), tiny.tokenizer()
    other.add_tokens(["more"])
    data = {
        name: encode(task, raw[name], one if name == "mood" else other)
        for name, task in tasks.items()
    }
    with pytest.raises(UserError, match="'mood' and 'names' have tokenizers of other words"):
        TasksData.of(data, recipe.train)


def test_a_file_that_tasks_read_otherwise_is_refused(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run", "train.epochs=1")
    (tmp_path / "ask.tsv").write_text("text\tmore\nthe film was fine\t1\na story\t2\n")
    both = [json.loads(line) for line in predict_tasks(run.path, str(tmp_path / "ask.tsv"))]
    assert [line["names"]["tokens"] for line in both] == [
        ["the", "film", "was", "fine"],
        ["a", "story"],
    ]
