"""What every benchmark shares: arguments, rows that survive an interruption, the result file."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from turnout.allocator import keep
from turnout.errors import UserError
from turnout.files import read_json, write_json
from turnout.measure import machine
from turnout.measure.stats import mean_interval

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


class Benchmark:
    """One claim: its rows as they are measured, and its verdict at the end.

    Rows are written to NAME.json (NAME.quick.json with --quick) as soon as they exist, and taken
    from there when the script is started again; until it has finished the verdict is empty.
    """

    def __init__(self, name: str, claim: str, seeds: Iterable[int] = (0,)) -> None:
        parser = argparse.ArgumentParser(description=claim)
        parser.add_argument("--quick", action="store_true", help="at most 5 minutes on 2 cores")
        parser.add_argument("--data", default=os.environ.get("TURNOUT_DATA", "data"))
        parser.add_argument("--seeds", type=int, nargs="+", help="seeds to run")
        parser.add_argument("--fresh", action="store_true", help="forget rows measured before")
        options = parser.parse_args()
        self.name, self.claim, self.quick = name, claim, options.quick
        self.data, self.fresh = Path(options.data), options.fresh
        default = list(seeds)[:1] if options.quick else list(seeds)
        self.seeds: list[int] = options.seeds or default
        stem = f"{name}.quick" if self.quick else name
        self.path = RESULTS / f"{stem}.json"
        RESULTS.mkdir(exist_ok=True)
        known = self.path.is_file() and not options.fresh
        self.rows: list[Row] = read_json(self.path)["rows"] if known else []

    def find(self, **key: Any) -> Row | None:
        """The row with these fields, if it was measured before."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        return None

    def add(self, rows: Iterable[Row]) -> None:
        """Rows that were measured together; written at once."""
        commit = _commit()
        for row in rows:
            self.rows.append({**row, "commit": commit})
            shown = (f"{k}={_short(v)}" for k, v in row.items() if not isinstance(v, dict))
            print(", ".join(shown), flush=True)
        self._write({}, ())

    def finish(self, verdict: dict[str, dict[str, Any]], notes: Iterable[str] = ()) -> None:
        """Write the result and print the verdict."""
        self._write(verdict, notes)
        for name, entry in verdict.items():
            mark = "met    " if entry["met"] else "not met"
            print(f"{mark} {name}: {_short(entry['value'])} (goal {entry['goal']})")
        print(f"written: {self.path}")

    def _write(self, verdict: dict[str, Any], notes: Iterable[str]) -> None:
        result = {
            "claim": self.claim,
            "command": _command(self.name),
            "commit": _commit(),
            "machine": machine.describe(),
            "seeds": sorted({row.get("seed", 0) for row in self.rows}),
            "rows": self.rows,
            "verdict": verdict,
            "notes": list(notes),
        }
        write_json(self.path, result)

    def folder(self, name: str) -> Path:
        """A data set's folder. Raises UserError that says where to get it."""
        folder = self.data / name
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not there; give --data DIR or set TURNOUT_DATA. "
                "benchmarks/README.md says where each data set is to be had"
            )
        return folder


def goal(value: float, at_most: float | None = None, at_least: float | None = None) -> Row:
    """One entry of a verdict."""
    if at_most is not None:
        return {"value": value, "goal": f"<= {at_most:g}", "met": bool(value <= at_most)}
    assert at_least is not None
    return {"value": value, "goal": f">= {at_least:g}", "met": bool(value >= at_least)}


def spread(values: Sequence[float]) -> Row:
    """Of one figure over seeds: the least and the largest, and the 95 % interval of the mean
    (Student's t; null for a single seed)."""
    found: Row = {"low": min(values), "high": max(values), "interval": None}
    if len(values) > 1:
        found["interval"] = list(mean_interval(values))
    return found


def gain(values: Sequence[float]) -> Row:
    """One entry of a verdict: by how much one contender is above another, seed by seed. Met where
    the whole interval is above 0; where it holds 0 nothing is decided, and the entry says so."""
    found, entry = spread(values), goal(statistics.fmean(values), at_least=0)
    interval = found["interval"]
    entry["goal"] = "> 0, the whole interval over seeds"
    entry["met"] = interval is not None and interval[0] > 0
    entry["decided"] = interval is not None and (interval[0] > 0 or interval[1] < 0)
    return {**entry, "over_seeds": found}


def main(run: Callable[[], None], keeps: bool = True) -> None:
    """Run a benchmark; a user's mistake is one line and exit code 2. keeps: freed memory stays in
    the process, which is fast; where logits of a large vocabulary take half of a gigabyte each,
    what is left between them is lost, and memory grows from step to step."""
    if keeps:
        keep()
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def workers_for(calls: Sequence[Any]) -> int:
    """How many processes to share them: a core each, which serves small models best."""
    return max(1, min(len(calls), torch.get_num_threads()))


def _command(name: str) -> str:
    """How to run it again; where the data lies differs from machine to machine."""
    options = sys.argv[1:]
    if "--data" in options:
        at = options.index("--data")
        options = options[:at] + options[at + 2 :]
    return " ".join(["python", f"benchmarks/{name}.py", *options])


def _commit() -> str:
    """The commit, and whether code differs from it (results do, while they are written)."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "*.py", "../src")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
