"""What an application that writes text does: data step, host, training, report, first answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from app import arguments, told

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
    with told():
        options = arguments(about)
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
