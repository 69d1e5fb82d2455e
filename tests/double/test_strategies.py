"""What learns, by the word in the recipe."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from torch import Tensor

import turnout
from double.test_pipeline import save_recipe
from turnout import UserError
from turnout.double import pipeline
from turnout.double.config import TasksTrainConfig
from turnout.double.inner import InnerStates
from turnout.double.recipe import TasksRecipe
from turnout.double.strategies import Unfreezing, hold, scales
from turnout.files import read_json
from turnout.hosts.tasks_model import TasksModel
from turnout.train.data import encode

ALL = {"embeddings", "block 0", "block 1", "routing", "heads"}
LEARNS: dict[str, set[str]] = {
    "full": ALL,
    "discriminative": ALL,
    "partial": {"block 1", "routing", "heads"},
    "head": {"heads"},
    "router": {"routing", "heads"},
    "lora": {"block 0", "block 1", "routing", "heads"},
    "prompt": {"prompt", "routing", "heads"},
    "p-tuning": {"prompt", "routing", "heads"},
    "prefix": {"prompt", "routing", "heads"},
}
DISTIL: dict[str, Any] = {
    **{"vocab_size": len(tiny.WORDS), "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    **{"max_position_embeddings": 32, "pad_token_id": 0},
}
MORE = ["train.epochs=2", "train.blocks=1", "train.prompt_tokens=3", "train.unfreeze=0.5"]


def part_of(name: str) -> str:
    for start, part in (
        ("backbone.embeddings", "embeddings"),
        ("backbone.encoder.layer.0.", "block 0"),
        ("backbone.encoder.layer.1.", "block 1"),
        ("turnout.", "routing"),
        ("heads.", "heads"),
        ("prompt.", "prompt"),
    ):
        if name.startswith(start):
            return part
    raise AssertionError(name)


@pytest.mark.parametrize("strategy", LEARNS)
def test_what_learns(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), [f"train.strategy={strategy}", *MORE])
    before: dict[str, Tensor] = {}
    begun = pipeline.new_model

    def noting(*args: Any) -> Any:
        model, tokenizer = begun(*args)
        before.update({name: value.clone() for name, value in model.state_dict().items()})
        return model, tokenizer

    monkeypatch.setattr(pipeline, "new_model", noting)
    run = pipeline.train_tasks(recipe, tmp_path / "run", say=str, progress=False)
    model = run.load()
    after = model.state_dict()
    same = {name.replace(".base_layer", ""): value for name, value in before.items()}
    moved = {part_of(name) for name, value in after.items() if not torch.equal(value, same[name])}
    assert moved == LEARNS[strategy]
    assert not any("lora" in name for name in after)
    assert read_json(run.path / "training.json")["trained_parameters"] > 0
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "tasks": ["mood"]}
        first = model(**inputs).logits["mood"]
        torch.testing.assert_close(run.load()(**inputs).logits["mood"], first)


@pytest.mark.parametrize("strategy", ["prompt", "prefix"])
def test_a_prompt_stands_before_every_text(strategy: str, tmp_path: Path) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), [f"train.strategy={strategy}", *MORE])
    model = pipeline.train_tasks(recipe, tmp_path / "run", say=str, progress=False).load()
    ids = torch.tensor([[2, 5, 9, 3, 0], [2, 5, 9, 11, 3]])
    mask = (ids > 0).long()
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask, tasks=["names"]).logits["names"]
        alone = model(input_ids=ids[:1, :4], tasks=["names"]).logits["names"]
        assert both.shape[:2] == (2, 5)
        torch.testing.assert_close(both[:1, :4], alone)
        for parameter in model.prompt.parameters():
            parameter += torch.randn(parameter.shape)
        other = model(input_ids=ids[:1, :4], tasks=["names"]).logits["names"]
    assert not torch.allclose(other, alone, atol=1e-3)


def tasks_model(tmp_path: Path) -> TasksModel:
    recipe = TasksRecipe.load(save_recipe(tmp_path), ["train.max_steps=1"])
    return pipeline.train_tasks(recipe, tmp_path / "run", say=str, progress=False).load()


def test_lower_blocks_learn_slower(tmp_path: Path) -> None:
    model = tasks_model(tmp_path)
    config = TasksTrainConfig(strategy="discriminative", decay=0.5)
    found: dict[str, set[float]] = {}
    by_id = scales(model, config)
    for name, parameter in model.backbone.named_parameters():
        found.setdefault(part_of(f"backbone.{name}"), set()).add(by_id[id(parameter)])
    assert found == {"embeddings": {0.25}, "block 0": {0.5}, "block 1": {1.0}}
    assert scales(model, TasksTrainConfig()) == {}


def test_blocks_are_let_in_from_the_top(tmp_path: Path) -> None:
    model = tasks_model(tmp_path)
    config = TasksTrainConfig(strategy="discriminative", unfreeze=0.5)
    hold(model, config)
    callback = Unfreezing(model, 0.5)
    seen = []
    for step in (0, 4, 5, 9, 10, 19):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=20), None)
        named = model.backbone.named_parameters()
        seen.append({part_of(f"backbone.{name}") for name, p in named if p.requires_grad})
    first, second = {"block 1"}, {"block 0", "block 1"}
    assert seen == [first, first, second, second, second | {"embeddings"}, second | {"embeddings"}]


def test_a_name_of_nothing_is_refused(tmp_path: Path) -> None:
    model = tasks_model(tmp_path)
    config = TasksTrainConfig(strategy="partial", named=("encoder.layers",))
    with pytest.raises(UserError, match=r"begins with encoder\.layers; .* such as embeddings"):
        hold(model, config)
    hold(model, TasksTrainConfig(strategy="partial", named=("encoder.layer.0.attention",)))
    learns = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert learns and all(name.startswith("encoder.layer.0.attention") for name in learns)
    assert isinstance(model.turnout, turnout.execute.routing.Routing)  # type: ignore[attr-defined]


def test_a_prefix_is_refused_where_it_would_be_lost(tmp_path: Path) -> None:
    page = save_recipe(tmp_path)
    routers = 'routers=[{"kind": "gate", "site": "layer"}]'
    with pytest.raises(UserError, match="prefix gives every attention keys and values"):
        TasksRecipe.load(page, ["train.strategy=prefix", routers])
    tiny.save_host(tmp_path / "host", hf.DistilBertConfig(**DISTIL))
    recipe = TasksRecipe.load(page, ["train.strategy=prefix", *MORE])
    with pytest.raises(UserError, match="reads a cache, which DistilBertModel has not"):
        pipeline.train_tasks(recipe, tmp_path / "run", say=str, progress=False)


def test_inner_classifiers_learn_and_are_gone(tmp_path: Path) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), ["train.strategy=discriminative", *MORE])
    tasks, raw = pipeline.load_tasks(recipe, str)
    model, tokenizer = pipeline.new_model(recipe, tasks)
    assert model.inner is not None
    before = {name: value.clone() for name, value in model.inner.state_dict().items()}
    data = {name: encode(task, raw[name], tokenizer) for name, task in tasks.items()}
    pipeline.fit_tasks(model, data, recipe.train, tmp_path / "checkpoints", str, False)
    after = model.inner.state_dict()
    assert set(before) == {
        f"tasks.{task}.0.{name}"
        for task in ("mood", "names")
        for name in ("linear.weight", "linear.bias", "log_variance")
    }
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if "log_variance" not in name}
    pipeline.finish(model, recipe.train)
    assert model.inner is None and not any("inner" in name for name in model.state_dict())


def test_an_inner_loss_is_that_of_its_own_head(tmp_path: Path) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), ["train.strategy=discriminative", *MORE])
    tasks, _ = pipeline.load_tasks(recipe, str)
    model, _ = pipeline.new_model(recipe, tasks)
    model.train()
    states, ids = InnerStates(model), torch.tensor([[2, 5, 9, 3, 0], [2, 5, 9, 11, 3]])
    mask, labels = (ids > 0).long(), torch.tensor([0, 1])
    model(input_ids=ids, attention_mask=mask, tasks=["mood"])
    state = states.states[0]
    head: Any = model.inner.tasks["mood"][0]  # type: ignore[union-attr, index]
    mean = torch.stack([state[0, :4].mean(0), state[1].mean(0)])
    expected = torch.nn.functional.cross_entropy(head.linear(mean), labels)
    found = states.loss(model, "mood", mask, labels)
    assert found is not None and states.states == {}
    torch.testing.assert_close(found, expected)
    states.close()
    model(input_ids=ids, attention_mask=mask, tasks=["mood"])
    assert states.states == {}


@pytest.mark.parametrize("strategy", ["prompt", "p-tuning"])
def test_routers_inside_know_the_prompt_from_padding(strategy: str, tmp_path: Path) -> None:
    routers = "routers=[{kind: gate, site: layer, open: 0.1}]"
    how = [f"train.strategy={strategy}", routers, *MORE]
    recipe = TasksRecipe.load(save_recipe(tmp_path), how)
    model = pipeline.train_tasks(recipe, tmp_path / "run", say=str, progress=False).load()
    ids = torch.tensor([[2, 5, 9, 3, 0, 0], [2, 5, 9, 11, 8, 3]])
    mask = (ids > 0).long()
    with torch.no_grad(), model.turnout.at(0.5):  # type: ignore[union-attr, operator]
        with turnout.trace() as both:
            together = model(input_ids=ids, attention_mask=mask, tasks=["mood"]).logits["mood"]
        with turnout.trace() as one:
            alone = model(input_ids=ids[:1, :4], tasks=["mood"]).logits["mood"]
    torch.testing.assert_close(together[:1], alone)
    for key, route in one.items():
        torch.testing.assert_close(both[key].score_BTU[:1], route.score_BTU)
    assert int(both.valid_BT("encoder")[0].sum()) == 4 + 3
