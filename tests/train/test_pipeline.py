"""turnout train: stages, going on after a stop, what is refused, a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hosts_table import BY_NAME
from safetensors.torch import load_file

import turnout
from turnout import UserError
from turnout.files import read_json
from turnout.recipe import Recipe, load
from turnout.run import open_run
from turnout.train import pipeline
from turnout.train import trainer as trainer_module
from turnout.train.checkpoints import last_checkpoint
from turnout.train.data import encode
from turnout.train.prepare import check_stacks

FEW = ("train.epochs=1", "train.dropout=0.1", "train.save_every=1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.save_recipe(tmp_path)


def train(recipe: Recipe, out: Path) -> list[str]:
    said: list[str] = []
    pipeline.train(recipe, out, say=said.append, progress=False)
    return said


def weights(out: Path, stage: str = "routed") -> dict[str, torch.Tensor]:
    return load_file(out / stage / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_folder_holds_what_others_need(path: Path, tmp_path: Path) -> None:
    said = train(load(path, FEW), tmp_path / "runs" / "a")
    run = open_run(tmp_path / "runs" / "a")
    assert sorted(item.name for item in run.path.iterdir()) == [
        "dense",
        "recipe.yaml",
        "routed",
        "run.json",
        "training.json",
    ]
    assert run.labels == ["negative", "positive"]
    assert load(run.path / "recipe.yaml") == run.recipe == load(path, FEW)
    assert (run.path / "recipe.yaml").read_text().startswith(f"# turnout: {turnout.__version__}\n")
    assert read_json(run.path / "run.json")["format"] == 1
    assert said[0] == "data: 40 train, 20 validation, 20 test; 2 labels: negative, positive"
    assert any(line.startswith("  accuracy on validation at budget 0.5: ") for line in said)
    model = turnout.load(run.path)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.turnout.budget == 0.5 and model.turnout.all_routers()[0].levels
    assert "turnout" not in read_json(run.dense / "config.json")
    assert run.tokenizer()("fine").input_ids == [2, 4, 3]


def test_training_learns(path: Path, tmp_path: Path) -> None:
    train(load(path, ("train.epochs=8", "train.learning_rate=0.02")), tmp_path / "run")
    run = open_run(tmp_path / "run")
    task = run.task()
    splits = task.load()
    unseen = encode(task, {**splits, "validation": splits["test"]}, run.tokenizer())
    assert unseen.score(run.load_dense()) > 0.9
    assert unseen.score(run.load_routed()) > 0.8


def test_the_routed_model_may_start_from_a_cut_host(path: Path, tmp_path: Path) -> None:
    train(load(path, (*FEW, "train.routed_layers=first-1")), tmp_path / "run")
    run = open_run(tmp_path / "run")
    model = run.load_routed()
    assert model.config.num_hidden_layers == 1 and run.load_dense().config.num_hidden_layers == 2
    assert [site.key for site in model.turnout.sites] == ["encoder.0.layer"]
    with pytest.raises(UserError, match="cut keeps at least 1 layer"):
        train(load(path, (*FEW, "train.routed_layers=first-2")), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_routers_may_be_trained_on_a_trained_cut_host(path: Path, tmp_path: Path) -> None:
    cut = ("train.routed_layers=first-1", "train.routed_start=cut", "train.routed_freeze=host")
    said = train(load(path, (*FEW, *cut)), tmp_path / "run")
    assert sum("first-1: " in line for line in said) == 1
    static, routed = weights(tmp_path / "run" / "static", "first-1"), weights(tmp_path / "run")
    assert same(static, {key: routed[key] for key in static})
    heads = [key for key in routed if key.startswith("turnout.") and key.endswith("bias")]
    assert heads and all(routed[key].abs().sum() > 0 for key in heads)
    for wrong in (("train.routed_start=cut",), ("train.routed_freeze=hosts",)):
        with pytest.raises(UserError, match=r"routed_layers|hosts"):
            load(path, (*FEW, *wrong))


@pytest.mark.parametrize("split", ["coactivation", "importance"])
def test_experts_are_split_by_the_training_data(split: str, path: Path, tmp_path: Path) -> None:
    expert = ("routers.0.kind=gate", "routers.0.site=expert", "routers.0.experts=4")
    orders = []
    for how in (split, "random"):
        train(load(path, (*FEW, *expert, f"routers.0.split={how}")), tmp_path / how)
        orders.append(open_run(tmp_path / how).load_routed().turnout.orders["encoder.0"])
    assert not torch.equal(*orders)


def test_the_same_recipe_gives_the_same_weights(path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        torch.rand(7 if name == "a" else 3)
        train(load(path, FEW), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("stop", ["dense", "routed", "calibration"])
def test_stopped_and_gone_on_gives_the_same_weights(
    stop: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(path, FEW)
    train(recipe, tmp_path / "whole")

    plain = trainer_module.RoutedTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        routed = hasattr(self.model, "turnout")
        if routed == (stop == "routed") and self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stop == "calibration":
            patch.setattr(pipeline, "calibrate", killed)
        else:
            patch.setattr(trainer_module.RoutedTrainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "routed").exists()
    assert (tmp_path / "stopped" / "dense").exists() == (stop != "dense")
    last = "dense" if stop == "dense" else "routed"
    begun = last_checkpoint(tmp_path / "stopped" / "checkpoints" / last)
    torch.rand(5)
    train(recipe, tmp_path / "stopped")
    seconds = read_json(tmp_path / "stopped" / "training.json")[last]["seconds"]
    assert (seconds is None) == (begun is not None)  # what both starts took nobody knows
    for stage in ("dense", "routed"):
        assert same(weights(tmp_path / "whole", stage), weights(tmp_path / "stopped", stage))
    specs = [read_json(tmp_path / n / "routed" / "config.json") for n in ("whole", "stopped")]
    assert specs[0]["turnout"] == specs[1]["turnout"]
    assert not (tmp_path / "stopped" / "checkpoints").exists()


def test_a_finished_run_is_left_alone(path: Path, tmp_path: Path) -> None:
    train(load(path, FEW), tmp_path / "run")
    before = (tmp_path / "run" / "routed" / "model.safetensors").stat().st_mtime_ns
    said = train(load(path, (*FEW, "measure.repeats=4")), tmp_path / "run")
    assert said == [f"{tmp_path}/run is trained already; nothing to do"]
    assert (tmp_path / "run" / "routed" / "model.safetensors").stat().st_mtime_ns == before
    assert open_run(tmp_path / "run").recipe.measure.repeats == 4
    with pytest.raises(UserError, match=r"another recipe: train.epochs is 1.0 there and 2.0 here"):
        train(load(path, (*FEW, "train.epochs=2")), tmp_path / "run")
    with pytest.raises(UserError, match=r"routers.0.kind is 'exit' there and 'gate' here"):
        train(load(path, (*FEW, "routers.0.kind=gate")), tmp_path / "run")


def test_mistakes_are_found_before_training_and_leave_no_run(path: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (("routers.0.granularity=token",), "needs a host that labels tokens"),
        (("routers.0.hold_first=2",), "finds no site"),
        (("task.max_length=33",), "task.max_length: found 33; .*at most 32"),
        (("task.label=mark",), "no column 'mark'"),
    ):
        with pytest.raises(UserError, match=message):
            train(load(path, overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_not_touched(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and not a run folder"):
        train(load(path, FEW), tmp_path / "mine")
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_host_that_is_trained_already(path: Path, tmp_path: Path) -> None:
    train(load(path, FEW), tmp_path / "first")
    dense = tmp_path / "first" / "dense"
    overrides = (f"model={dense}", "train.epochs=0", "train.routed_epochs=1", "train.freeze=host")
    train(load(path, overrides), tmp_path / "second")
    assert same(weights(tmp_path / "second", "dense"), weights(tmp_path / "first", "dense"))
    kept = {k: v for k, v in weights(tmp_path / "second").items() if not k.startswith("turnout.")}
    assert same(kept, weights(tmp_path / "first", "dense"))
    with pytest.raises(UserError, match=r"label 'negative' does not occur in training|no head"):
        train(load(path, ("train.epochs=0", "train.routed_epochs=1")), tmp_path / "third")


@pytest.mark.parametrize("site", ["adapter", "expert"])
def test_clusters_are_counted_and_told(path: Path, tmp_path: Path, site: str) -> None:
    spec = f"routers=[{{kind: cluster, site: {site}, most: 3}}]"
    train(load(path, (*FEW, spec)), tmp_path / "run")
    run = open_run(tmp_path / "run")
    routing: Any = run.load_routed().turnout
    (router,) = routing.all_routers()
    found = read_json(run.path / "training.json")["routed"]["found"]["0_cluster"]
    assert router.count == len(found["sizes"]) in (2, 3) and router.config.most is None
    assert sum(found["sizes"]) > 0 and 0 <= found["balance"] <= 1


def test_no_number_of_clusters_that_fits_is_found_before_training(
    path: Path, tmp_path: Path
) -> None:
    spec = "routers=[{kind: cluster, site: expert, most: 5, top: 5}]"
    with pytest.raises(UserError, match=r"no number from 5 to 5 divides the neurons .*\(24\)"):
        train(load(path, (*FEW, spec)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_may_begin_with_routes_that_were_searched(path: Path, tmp_path: Path) -> None:
    train(load(path, (*FEW, "routers=[{kind: policy, imitate: 12, price: 0.5}]")), tmp_path / "run")
    run = open_run(tmp_path / "run")
    found = read_json(run.path / "training.json")["routed"]["found"]["0_policy"]
    assert found["texts"] == 12
    assert found["reward_of_found_routes"] >= found["reward_of_everything"]
    assert found["loss_last"] < found["loss_first"]


def test_nothing_to_train_is_said(path: Path, tmp_path: Path) -> None:
    said = train(
        load(path, (*FEW, "routers=[{kind: random-skip}]", "train.freeze=host")), tmp_path / "run"
    )
    assert "nothing to train: the host is frozen and these routers have no weights" in said


def test_with_a_teacher_of_hidden_states(path: Path, tmp_path: Path) -> None:
    train(load(path, (*FEW, "objectives.hidden=1")), tmp_path / "run")
    assert not same(weights(tmp_path / "run", "dense"), weights(tmp_path / "run"))


SCRIPT = """
import resource, sys
from turnout.errors import UserError
from turnout.recipe import load
from turnout.train import pipeline
recipe = load(sys.argv[1], sys.argv[4:])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    pipeline.train(recipe, sys.argv[2], progress=False)
except UserError as error:
    print("refused:", error)
    sys.exit(2)
"""


def test_a_full_disk_leaves_nothing_half_written(path: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses the same calls."""
    limit = (tmp_path / "host" / "model.safetensors").stat().st_size // 2
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "run"), str(limit), *FEW],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"refused: cannot write {tmp_path}/run/checkpoints/dense/checkpoint-1: " in done.stdout
    left = [str(item.relative_to(tmp_path / "run")) for item in (tmp_path / "run").rglob("*")]
    kept = ["dense", "dense/number_format.json"]
    assert sorted(left) == [
        "checkpoints", *(f"checkpoints/{name}" for name in kept), "recipe.yaml", "run.json",
    ]  # fmt: skip
    train(load(path, FEW), tmp_path / "run")  # with room again, it goes on
    assert turnout.load(tmp_path / "run")


def test_more_clusters_than_rows_are_refused_before_training(path: Path, tmp_path: Path) -> None:
    spec = "routers=[{kind: cluster, adapters: 5000}]"
    with pytest.raises(UserError, match=r"cannot fit 5000 clusters on \d+ training rows"):
        train(load(path, (*FEW, spec)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "cluster", "stack": "decoder"}, "set `stack: encoder`"),
        ({"kind": "policy", "stack": "encoder", "imitate": 8}, "leave out imitate"),
    ],
)
def test_what_two_stacks_cannot_be_prepared_for_is_refused(
    spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_stacks(turnout.install(BY_NAME["bart"].build(), [spec]))


def test_a_search_beside_other_routers_is_refused_before_training(
    path: Path, tmp_path: Path
) -> None:
    routers = "routers=[{kind: policy, imitate: 12}, {kind: gate, site: ffn}]"
    with pytest.raises(UserError, match="must be the only router"):
        train(load(path, (*FEW, routers)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
