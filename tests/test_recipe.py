"""Recipes: what is read, and every mistake by file, line, field, found and allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from turnout import UserError, recipe
from turnout.double.config import TasksMeasureConfig, TasksTrainConfig
from turnout.measure.config import MeasureConfig
from turnout.noise import NOISES
from turnout.objectives import ObjectivesConfig
from turnout.routers import ROUTERS, RouterConfig
from turnout.tasks import (
    AnswersConfig,
    ClassificationConfig,
    LabelsConfig,
    NERConfig,
    NumberConfig,
    RankingConfig,
    RewritingConfig,
)
from turnout.train.config import TrainConfig

GOOD = """\
model: host
task:
  kind: classification
  train: train.csv
routers:
  - {kind: exit}
  - kind: gate
    site: ffn
    layers: [0, -1]
train:
  learning_rate: 3e-4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "host").mkdir()
    (tmp_path / "train.csv").write_text("text,label\n")
    return tmp_path


def load(folder: Path, text: str = GOOD, overrides: tuple[str, ...] = ()) -> recipe.Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return recipe.load(path, overrides)


def fails(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, overrides)
    return str(caught.value).replace(str(folder), "")


def test_fields_defaults_and_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = load(folder)
    assert found.model == str(folder / "host")
    assert found.task.train == str(folder / "train.csv")
    assert found.train.learning_rate == 3e-4
    assert [router.kind for router in found.routers] == ["exit", "gate"]
    assert found.routers[1].layers == (0, -1)
    assert found.measure.budgets == [0.75, 0.5, 0.35, 0.25]


def test_written_out_it_reads_back(folder: Path) -> None:
    found = load(folder)
    again = load(folder, found.text("a comment"))
    assert again == found


def test_names_on_the_hub_stay_names(folder: Path) -> None:
    text = GOOD.replace("model: host", "model: google/bert_uncased_L-2_H-128_A-2")
    found = load(folder, text.replace("train.csv", "glue:sst2"))
    assert (found.model, found.task.train) == ("google/bert_uncased_L-2_H-128_A-2", "glue:sst2")


def test_overrides_win_and_their_paths_are_of_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "other.csv").write_text("text,label\n")
    monkeypatch.chdir(folder / "below")
    found = load(
        folder,
        overrides=(
            "train.epochs=1",
            "task.train=other.csv",
            "routers.1.layers=[1]",
            "train.patience=2",
        ),
    )
    assert found.train.epochs == 1
    assert found.train.patience == 2
    assert found.task.train == str(folder / "below" / "other.csv")
    assert found.routers[1].layers == (1,)


MISTAKES = {
    "unknown field": (
        ("  learning_rate: 3e-4", "  epoch: 3"),
        "/recipe.yaml:11: train.epoch: unknown field; did you mean 'epochs'? allowed: epochs, ",
    ),
    "unknown field of a router": (
        ("    site: ffn", "    sites: ffn"),
        "/recipe.yaml:8: routers.1.sites: unknown field; did you mean 'site'? allowed: ",
    ),
    "unknown section": (
        ("train:\n  l", "training:\n  l"),
        "/recipe.yaml:10: training: unknown field; did you mean 'train'? allowed: model, task, ",
    ),
    "wrong type": (
        ("3e-4", "fast"),
        "/recipe.yaml:11: train.learning_rate: found 'fast'; it should be a valid number",
    ),
    "number in quotes": (
        ("3e-4", "'0.1'"),
        "/recipe.yaml:11: train.learning_rate: found '0.1'; it should be a valid number",
    ),
    "out of range": (
        ("learning_rate: 3e-4", "budget: 1.5"),
        "/recipe.yaml:11: train.budget: found 1.5; it should be less than or equal to 1",
    ),
    "not finite": (
        ("learning_rate: 3e-4", "clip: .inf"),
        "/recipe.yaml:11: train.clip: found inf; it should be a finite number",
    ),
    "a seed that cannot be": (
        ("learning_rate: 3e-4", "seed: -1"),
        "/recipe.yaml:11: train.seed: found -1; it should be greater than or equal to 0",
    ),
    "not one of": (
        ("learning_rate: 3e-4", "freeze: embedding"),
        "train.freeze: found 'embedding'; it should be 'none', 'embeddings', 'blocks', 'host' or "
        "'units'; did you mean 'embeddings'?",
    ),
    "a bare yes": (
        ("learning_rate: 3e-4", "freeze: no"),
        "train.freeze: found False; it should be 'none', 'embeddings', 'blocks', 'host' or 'units' "
        "(YAML reads a bare",
    ),
    "unknown kind": (
        ("kind: gate", "kind: gates"),
        "/recipe.yaml:7: routers.1.kind: found 'gates'; did you mean 'gate'? allowed: attention, ",
    ),
    "no kind": (
        ("  kind: classification\n", ""),
        "/recipe.yaml:2: task: the field 'kind' is missing; "
        "allowed: answers, classification, labels, language, ner, number, ranking, "
        "rewriting",
    ),
    "missing field": (
        ("  train: train.csv\n", "  label: x\n"),
        "/recipe.yaml:2: task.train: this field is missing",
    ),
    "missing section": (("model: host\n", ""), "/recipe.yaml:1: model: this field is missing"),
    "one of two types": (
        ("  train: train.csv", "  train: train.csv\n  text: 3"),
        "/recipe.yaml:5: task.text: found 3; it should be a valid string or be a valid",
    ),
    "no budgets": (
        ("train:\n  l", "measure: {budgets: []}\ntrain:\n  l"),
        "measure.budgets: found []; it should have at least 1 item",
    ),
    "bad yaml": (("{kind: exit}", "{kind: exit"), "not valid YAML: "),
    "twice": (
        ("  learning_rate: 3e-4", "  epochs: 2\n  epochs: 3"),
        "/recipe.yaml:12: epochs: this field stands twice (first in line 11)",
    ),
    "bad cut": (
        ("train:\n  l", "measure:\n  static: [first-0]\ntrain:\n  l"),
        "/recipe.yaml:11: measure.static.0: found 'first-0'; it should match",
    ),
    "bad budget to measure": (
        ("train:\n  l", "measure:\n  budgets: [0.5, 2]\ntrain:\n  l"),
        "/recipe.yaml:11: measure.budgets.1: found 2; it should be less than or equal to 1",
    ),
    "epochs without routed epochs": (
        ("learning_rate: 3e-4", "epochs: 0"),
        "epochs: 0 needs routed_epochs",
    ),
    "no such file": (
        ("train: train.csv", "train: trian.csv"),
        "/recipe.yaml:4: task.train: 'trian.csv': no such file or folder (/trian.csv); "
        "did you mean '/train.csv'?",
    ),
    "no such folder": (
        ("model: host", "model: ./hosts"),
        "/recipe.yaml:1: model: './hosts': no such file or folder (/hosts); did you mean",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_by_line_and_field(name: str, folder: Path) -> None:
    (old, new), message = MISTAKES[name]
    assert old in GOOD
    assert message in fails(folder, GOOD.replace(old, new))


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    told = fails(folder, GOOD.replace("3e-4", "fast").replace("kind: gate", "kind: door"))
    assert len(told.splitlines()) == 2


def test_a_mistake_on_the_command_line_is_told_as_such(folder: Path) -> None:
    told = fails(folder, GOOD, ("train.epochs=many",))
    assert told.startswith("command line (train.epochs=many): train.epochs: found 'many'")
    assert "command line (train.epoc=1): train.epoc: unknown field; did you mean 'epochs'?" in (
        fails(folder, GOOD, ("train.epoc=1",))
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "is not an override"),
        ("=1", "is not an override"),
        ("routers.7.kind=gate", "there is no field routers.7"),
        ("model.name=x", "model: found {'name': 'x'}; it should be a valid string"),
        ("train.epochs=[", "not a YAML value"),
    ],
)
def test_bad_overrides(override: str, message: str, folder: Path) -> None:
    assert message in fails(folder, GOOD, (override,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n- b\n", ":1: found a list; a recipe is a page of fields"),
        ("just words\n", ":1: found a str"),
        ("a: *b\n", "not valid YAML"),
        ("2024-01-01: x\n", ":1: '2024-01-01': a field's name is a word; YAML reads this as a t"),
        ("model: x\nyes: 1\n", ":2: 'yes': a field's name is a word; YAML reads this as a bool"),
        ("model: &a [*a]\n", ":1: an alias stands inside its own anchor"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_pages_that_are_no_recipes(text: str, message: str, folder: Path) -> None:
    assert message in fails(folder, text)


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; did you mean .*recipe.yaml"):
        load(folder)
        recipe.load(folder / "recipes.yaml")
    (folder / "recipe.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        recipe.load(folder / "recipe.yaml")


def test_the_schema_holds_every_router_and_field() -> None:
    found = recipe.schema()
    routers = found["properties"]["routers"]["items"]["discriminator"]["mapping"]
    assert list(routers) == list(ROUTERS)
    assert list(found["properties"]) == list(recipe.Recipe.model_fields)
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_the_page_about_tasks_names_every_field() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+)`", page))
    for cls in (TasksTrainConfig, TasksMeasureConfig):
        fields = set(cls.model_fields)
        assert fields <= told, f"docs/tasks.md lacks {', '.join(sorted(fields - told))}"


@pytest.mark.parametrize("name", ["task", "routers", "noise", "objectives", "train", "measure"])
def test_the_page_about_recipes_names_every_field(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    sections = [part for part in page.split("\n## ") if part.startswith(name)]
    classes = {
        "task": (
            AnswersConfig,
            ClassificationConfig,
            LabelsConfig,
            NERConfig,
            NumberConfig,
            RankingConfig,
            RewritingConfig,
        ),
        "routers": (RouterConfig,),
        "noise": tuple(noise.Config for noise in NOISES.values()),
        "objectives": (ObjectivesConfig,),
        "train": (TrainConfig,),
        "measure": (MeasureConfig,),
    }[name]
    told = {word for line in sections for word in re.findall(r"`(\w+)`", line)}
    for cls in classes:
        fields = set(cls.model_fields) - {"kind"}
        assert fields <= told, f"docs/recipes.md lacks {', '.join(sorted(fields - told))}"
