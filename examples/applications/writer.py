"""What an application that writes text does: data step, host, training, report, first answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from turnout.errors import UserError
from turnout.files import make_folder, write_text
from turnout.measure.run import measure
from turnout.predict import predict
from turnout.recipe import load
from turnout.train.pipeline import train

Files = Mapping[str, str]


def write(
    about: str,
    prepare: Callable[[Path, Path], Files],
    make_host: Callable[[Files, Path], Path],
    page: Mapping[str, Any],
    tries: Sequence[str],
) -> None:
    """The command line of one application. prepare: writes the file of each split from a folder of
    public data. make_host: an encoder-decoder, once. page: a recipe without files. tries: inputs to
    answer at the end. What is wrong with data or settings is said, and the exit code is 2."""
    try:
        _write(about, prepare, make_host, page, tries)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _write(
    about: str,
    prepare: Callable[[Path, Path], Files],
    make_host: Callable[[Files, Path], Path],
    page: Mapping[str, Any],
    tries: Sequence[str],
) -> None:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("data", type=Path, help="folder of the public data set")
    parser.add_argument("out", type=Path, help="folder to work in; started again, it goes on")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, as train.epochs=1")
    options = parser.parse_args()
    out = options.out
    files = prepare(options.data, make_folder(out / "data"))
    host = out / "host"
    if not host.is_dir():
        make_host(files, host)
    whole = {"model": str(host.resolve()), **page, "task": {**page["task"], **files}}
    write_text(out / "recipe.yaml", yaml.safe_dump(whole, sort_keys=False))
    trained = train(load(out / "recipe.yaml", options.overrides), out / "run")
    for arm in measure(trained, trained.recipe.measure).arms:
        said = ", ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else str(value)
            for name, value in arm.report.items()
        )
        print(f"{arm.name}: {said}; {arm.speedup.value:.2f}x dense")
    write_text(out / "try.txt", "".join(f"{each}\n" for each in tries))
    for line in predict(trained.path, str(out / "try.txt")):
        print(line)
    print(f"your own: turnout predict {trained.path} --input FILE")
