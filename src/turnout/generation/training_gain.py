"""What new rows are worth to a real training: a recipe's model, trained without and with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from turnout.errors import UserError
from turnout.files import make_folder
from turnout.generation.augment import Row
from turnout.generation.augment_files import write_rows
from turnout.generation.judging import Gain, gain_of, predicted
from turnout.recipe import load
from turnout.train.pipeline import train


def recipe_gain(
    recipe: str | Path,
    rows: Sequence[Row],
    new: Sequence[Row],
    test: Sequence[Row],
    folder: Path,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> Gain:
    """Accuracies of the routed model that a recipe trains, on test rows. Its own training rows are
    replaced by these; everything else is as it says. folder: for the files and the two runs, which
    are gone on with when they are there. Raises UserError for a recipe of another task."""
    make_folder(folder)
    task = load(Path(recipe), []).task
    if task.kind != "classification" or len(task.text_columns) != 1:
        raise UserError(f"{recipe}: the recipe's task is no classification of one text")
    rights = []
    for name, learned in (("without", rows), ("with", [*rows, *new])):
        file = (folder / f"{name}.jsonl").resolve()
        write_rows(file, learned, task.text_columns[0], task.label, {})
        run = train(
            load(Path(recipe), [f"task.train={file}"]), folder / name, say=say, progress=False
        )
        said = predicted(run.path, [row.text for row in test], device)
        rights.append(
            [each["prediction"] == row.label for each, row in zip(said, test, strict=True)]
        )
    return gain_of(*rights)
