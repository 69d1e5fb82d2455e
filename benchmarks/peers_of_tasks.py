"""How long others take to answer several tasks: PEFT's Poly and X-LoRA, and `adapters`' Parallel.

Time alone, of untrained adapters on the same backbone and texts; every figure is a multiple of a
plain pass of the backbone in the same run. Poly mixes its skills anew for each task, so k tasks
take k passes; X-LoRA mixes adapters by the input and answers all tasks in its pass, which is two;
Parallel repeats a text's rows for each task from the first adapter on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import Row
from frontier_claim import WORK
from peft import LoraConfig, PolyConfig, XLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel

from turnout.errors import first_line
from turnout.files import atomic_dir, make_folder, write_json
from turnout.measure.stats import ratio_interval
from turnout.measure.timing import interleaved

TARGETS = ["query", "value"]
Batches = Sequence[dict[str, Tensor]]


def peers(folder: str, texts: list[list[str]], batches: Batches, repeats: int) -> list[Row]:
    """Rows of every peer by number of tasks. folder: of the backbone; texts: in batches, and the
    same as tensors."""
    rows = _peft(folder, batches, repeats)
    return [*rows, *_parallel(folder, texts, repeats)]


def _peft(folder: str, batches: Batches, repeats: int) -> list[Row]:
    plain: Any = AutoModel.from_pretrained(folder).eval()
    fields = {"r": 8, "n_tasks": 6, "n_skills": 6, "target_modules": TARGETS}
    arms: dict[str, Callable[[], None]] = {"plain": _passes(plain, batches)}
    rows: list[Row] = []
    # a whole PeftModel passes by the tuner's own forward, which is told the tasks
    poly: Any = get_peft_model(deepcopy(plain), PolyConfig(**fields)).base_model.eval()
    added = {"PEFT Poly": _size(poly) - _size(plain)}
    for count in range(1, 7):
        arms[f"PEFT Poly {count}"] = _passes(poly, batches, count)
    try:
        mixed = _xlora(folder)
        added["PEFT X-LoRA"] = _size(mixed) - _size(plain)
        arms["PEFT X-LoRA 6"] = _passes(mixed, batches)
        arms["PEFT X-LoRA 6"]()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        arms.pop("PEFT X-LoRA 6", None)
        rows.append({"contender": "PEFT X-LoRA", "note": first_line(error)})
    seconds = interleaved(arms, repeats)
    for name in arms:
        if name != "plain":
            ratio = ratio_interval(seconds[name], seconds["plain"])
            peer, _, count = name.rpartition(" ")
            found = {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
            found["added"] = added[peer]
            rows.append({"contender": peer, "tasks": int(count), **found})
    return rows


def _size(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


def _passes(model: Any, batches: Batches, tasks: int = 0) -> Callable[[], None]:
    """A pass over all texts; tasks: one for each, which the model is told."""

    @torch.inference_mode()
    def once() -> None:
        for batch in batches:
            for place in range(tasks):
                ids = torch.full((len(batch["input_ids"]),), place)
                model(**batch, task_ids=ids)
            if not tasks:
                model(**batch)

    return once


class Held(nn.Module):
    """A backbone under the name `model`, where X-LoRA looks for it in what it loads."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model: Any = AutoModel.from_pretrained(folder)
        self.config = self.model.config
        self.config.use_cache = False

    def forward(self, **inputs: Any) -> Any:
        """The backbone's."""
        return self.model(**inputs)


def _xlora(folder: str) -> Any:
    """Six LoRA adapters and what mixes them."""
    places = {}
    make_folder(WORK / "xlora")
    for number in range(6):
        place = WORK / "xlora" / str(number)
        if not place.is_dir():
            held: Any = Held(folder)
            model = get_peft_model(held, LoraConfig(r=8, target_modules=TARGETS))
            with atomic_dir(place) as temp:
                model.save_pretrained(str(temp))
        places[str(number)] = str(place)
    host: Any = Held(folder)
    config = XLoraConfig(hidden_size=host.config.hidden_size, adapters=places, xlora_depth=1)
    return get_peft_model(host, config).eval()


def _parallel(folder: str, texts: list[list[str]], repeats: int) -> list[Row]:
    """`adapters`, in an environment of its own, which is made on first use."""
    home = WORK / "adapters-env"
    python = home / "bin" / "python"
    try:
        if not (home / "whole").is_file():  # else an installation that was cut off would stay
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            pip = [str(python), "-m", "pip", "install", "-q"]
            index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
            subprocess.run([*pip, f"torch=={torch.__version__}", *index], check=True)
            subprocess.run([*pip, "adapters"], check=True)
            (home / "whole").touch()
        write_json(WORK / "peer-texts.json", texts)
        script = str(Path(__file__).parent / "parallel_peer.py")
        options = [
            folder,
            str(WORK / "peer-texts.json"),
            str(repeats),
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(
            [str(python), script, *options], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        return [{"contender": "adapters Parallel", "note": told[0] if told else first_line(error)}]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    versions = {name: found[name] for name in ("adapters", "transformers", "added")}
    return [
        {"contender": "adapters Parallel", "tasks": int(count), "ratio": ratio, **versions}
        for count, ratio in found["ratio"].items()
    ]
