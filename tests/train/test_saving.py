"""Saved and loaded: every router, every kind of damage, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hosts_table import BY_NAME
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.routers import ROUTERS
from turnout.train.saving import load_host, load_weights, note_dial, save

MORE = {
    "exit": [{"criterion": "learned", "hidden": 4}, {"granularity": "sequence"}],
    "gate": [{"shape": "mlp", "shared": True, "site": "ffn", "granularity": "token"}],
    "random-jump": [{"distribution": "learned"}],
}
ALWAYS = {"mixture": {"site": "adapter"}}  # its home is in models of several tasks
SPECS = [
    {"kind": kind, **ALWAYS.get(kind, {}), **more}
    for kind in ROUTERS
    for more in [{}, *MORE.get(kind, [])]
]  # a new router is in it


def host_of(spec: dict[str, Any]) -> str:
    return "llama" if spec["kind"] == "token-exit" else "bert"


def routed(spec: dict[str, Any], name: str = "bert") -> PreTrainedModel:
    model = turnout.install(BY_NAME[name].build(), [spec])
    for parameter in model.turnout.parameters():
        torch.nn.init.normal_(parameter)
    model.turnout.seed = 4
    return model


@torch.no_grad()
def answers(model: PreTrainedModel, name: str = "bert", budget: float = 0.5) -> torch.Tensor:
    model.turnout.seed = 4
    with model.turnout.at(budget):
        return model(**BY_NAME[name].inputs())["logits"]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_round_trip(spec: dict[str, Any], tmp_path: Path) -> None:
    name = host_of(spec)
    model = routed(spec, name)
    for router in model.turnout.all_routers():
        router.levels = [(0.9, 0.1), (0.2, 0.7)] if router.scored else []
    model.turnout.budget = 0.25
    note_dial(model)
    save(model, tiny.tokenizer(), tmp_path / "model")
    again = turnout.load(tmp_path / "model")
    assert again.turnout.budget == 0.25
    assert not again.training
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(answers(model, name), answers(again, name))
    # and once more, from the loaded one
    again.save_pretrained(tmp_path / "second")
    assert torch.equal(answers(turnout.load(tmp_path / "second"), name), answers(model, name))


def test_the_budget_is_saved_without_any_calibration(tmp_path: Path) -> None:
    model = routed({"kind": "random-skip", "rate": 0.5})
    model.turnout.budget = 0.25
    with model.turnout.at(0.75):
        pass
    deepcopy(model).save_pretrained(tmp_path)
    assert turnout.load(tmp_path).turnout.budget == 0.25


def test_dtype_is_passed_on_and_routers_stay_in_float32(tmp_path: Path) -> None:
    routed({"kind": "gate"}).save_pretrained(tmp_path)
    model = turnout.load(tmp_path, dtype=torch.bfloat16)
    dtypes = {p.dtype for n, p in model.named_parameters() if not n.startswith("turnout.")}
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.turnout.parameters()} == {torch.float32}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    routed({"kind": "exit"}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, **fields}))


def edit_weights(folder: Path, drop: str = "", add: str = "", resize: str = "") -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = torch.zeros(2)
    if resize:
        tensors[resize] = torch.zeros(3, 5)
    save_file(tensors, file, metadata={"format": "pt"})


def cut(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


HEAD = "turnout.routers.0_exit.heads.1.bias"
DAMAGE = {
    "truncated": (lambda f: cut(f, 0.7), "model.safetensors: cannot be read .* cut short"),
    "truncated header": (lambda f: cut(f, 0.0005), "model.safetensors: cannot be read"),
    "empty": (lambda f: cut(f, 0), "model.safetensors: cannot be read"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "no .safetensors file here; the checkpoint is incomplete",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json here"),
    "bad config": (
        lambda f: (f / "config.json").write_text("{"),
        r"config.json:1:2: not valid JSON",
    ),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "has no 'turnout' entry",
    ),
    "unrouted": (lambda f: edit_config(f, turnout=None), "has no 'turnout' entry"),
    "another version": (
        lambda f: edit_config(f, turnout={"version": 9, "routers": []}),
        "turnout version 9; this library reads 1",
    ),
    "no router list": (
        lambda f: edit_config(f, turnout={"version": 1}),
        "the 'turnout' entry lists no routers",
    ),
    "unknown router": (
        lambda f: edit_config(f, turnout={"version": 1, "routers": [{"kind": "exits"}]}),
        "unknown router 'exits'.*exit",
    ),
    "another router": (
        lambda f: edit_config(f, turnout={"version": 1, "routers": [{"kind": "gate"}]}),
        "the tensors do not fit the config; missing .*0_gate.*extra .*0_exit",
    ),
    "no class": (lambda f: edit_config(f, architectures=["pipeline"]), "no Transformers model"),
    "lost router tensor": (lambda f: edit_weights(f, drop=HEAD), "missing .*heads.1.bias"),
    "lost host tensor": (
        lambda f: edit_weights(f, drop="bert.encoder.layer.0.output.dense.weight"),
        "missing .*layer.0.output.dense.weight",
    ),
    "extra tensor": (lambda f: edit_weights(f, add="bert.more"), "extra .*bert.more"),
    "router of another shape": (lambda f: edit_weights(f, resize=HEAD), "size mismatch"),
    "host of another shape": (
        lambda f: edit_weights(f, resize="bert.encoder.layer.0.output.dense.weight"),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told(name: str, saved: Path) -> None:
    damage, message = DAMAGE[name]
    damage(saved)
    with pytest.raises(UserError, match=message) as caught:
        turnout.load(saved)
    assert str(saved) in str(caught.value) or name == "unknown router"


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"did not finish. Go on with: turnout train"):
        turnout.load(tmp_path)
    with pytest.raises(UserError, match=r"no config.json here"):
        turnout.load(tmp_path / "nothing")


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    plain = BY_NAME["bert"].build()
    load_weights(plain, saved)
    assert torch.equal(plain.classifier.weight, load_host(saved).classifier.weight)
    with pytest.raises(UserError, match=r"tensors do not fit.*missing .*0_gate"):
        load_weights(routed({"kind": "gate"}), saved)


FULL = """
import sys, shutil
from pathlib import Path
import tiny
from hosts_table import BY_NAME
from turnout.errors import UserError
from turnout.train.saving import save
disk, model = Path(sys.argv[1]), BY_NAME["bert"].build()
save(model, tiny.tokenizer(), disk / "model")
before = {p.name: p.read_bytes() for p in (disk / "model").iterdir()}
(disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
model.config.id2label[0] = "changed"
try:
    save(model, tiny.tokenizer(), disk / "model")
except UserError as error:
    print("refused:", error)
print(sorted(p.name for p in disk.iterdir()))
print({p.name: p.read_bytes() for p in (disk / "model").iterdir()} == before)
"""


def test_a_full_disk_keeps_the_older_model(tmp_path: Path) -> None:
    """On a disk of 1 MB, in a name space of its own, where the system allows one."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    alone = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run(
        [*alone, 'mount -t tmpfs tmpfs "$1"', "sh", str(tmp_path)],
        check=False, capture_output=True,
    ).returncode:  # fmt: skip
        pytest.skip("no right to mount a file system here")
    done = subprocess.run(
        [*alone, mount, "sh", str(tmp_path), sys.executable, FULL],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    refused, left, unchanged = done.stdout.strip().splitlines()
    assert refused == f"refused: cannot write {tmp_path}/model: No space left on device"
    assert left == "['filler', 'model']"
    assert unchanged == "True"
