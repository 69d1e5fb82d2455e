"""The commands. Thin: each reads its arguments, calls one function, prints what comes back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from turnout._version import __version__
from turnout.allocator import keep
from turnout.errors import UserError

MISTAKE, STOPPED = 2, 130


class _Group(TyperGroup):
    """A user's mistake is a message and exit code 2; any other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _stderr().print(f"error: {error}", style="red", markup=False, highlight=False)
            raise typer.Exit(MISTAKE) from None
        except KeyboardInterrupt:
            _stderr().print("\nstopped")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Routing for Transformers models: run only the parts of a model that an input needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"turnout {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML page.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; made, or gone on with.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe, as train.epochs=2."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Say nothing, draw no progress bar.")] = False,
) -> None:
    """Train the dense host, then the routed model. Run again, it goes on where it stopped."""
    _calm()
    from turnout.recipe import load
    from turnout.train import pipeline

    loaded = load(recipe, overrides or [])
    try:
        run = pipeline.train(loaded, out, say=_sayer(quiet), progress=_bars(quiet))
    except KeyboardInterrupt:
        _stderr().print("\nstopped; the same command goes on from the last checkpoint")
        raise typer.Exit(STOPPED) from None
    if not quiet:
        _stderr().print(f"done: {run.path}; next: turnout measure {run.path}", highlight=False)


@app.command()
def measure(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of `measure`, as repeats=15."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print only the table.")] = False,
) -> None:
    """Measure quality, time, work and memory, beside cut models and random routes."""
    _calm()
    from turnout.measure import run as measuring
    from turnout.measure.table import table
    from turnout.run import open_run

    opened = open_run(run)
    config = opened.measure_config(overrides or [])
    try:
        results = measuring.measure(opened, config, say=_sayer(quiet), progress=_bars(quiet))
    except KeyboardInterrupt:
        _stderr().print("\nstopped; the same command goes on with the cut models it has")
        raise typer.Exit(STOPPED) from None
    _stdout().print(table(results))
    _stderr().print(f"report: {run}/report.html", highlight=False)


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML page.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; made, or gone on with.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe, as train.epochs=2."),
    ] = None,
    routers: Annotated[
        str,
        typer.Option(
            help="Contenders, with commas: all, or some of exit, gate, gate-recurrent, gate-token, "
            "gate-head, gate-expert, attention, token-attention, policy, q-learning, random-jump; "
            "recipe is the page's own routers."
        ),
    ] = "all",
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds, with commas, as 0,1,2; the recipe's one if not given."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Contenders trained at once; each has its share of the cores."),
    ] = 1,
    quiet: Annotated[bool, typer.Option(help="Print only the table.")] = False,
) -> None:
    """Train several routers from one dense host and measure all of them in one run."""
    _calm()
    from turnout import contest
    from turnout.recipe import load

    loaded, names = load(recipe, overrides or []), _listed(routers)
    numbers = None if seeds is None else [_seed(each) for each in _listed(seeds)]
    how: dict[str, Any] = {"jobs": jobs, "say": _sayer(quiet), "progress": _bars(quiet)}
    try:
        if numbers is None:
            contest.compare(loaded, names, out, **how)
        else:
            contest.compare_seeds(loaded, names, out, numbers, **how)
    except KeyboardInterrupt:
        _stderr().print("\nstopped; the same command goes on")
        raise typer.Exit(STOPPED) from None
    found = contest.load(out)
    _stdout().print(contest.arms(found).rich())
    _stdout().print(contest.ranking(found).rich())
    pages = f"{out}/report.html" if numbers is None else f"{out}/seed-*/report.html"
    _stderr().print(f"the tables: {out}/comparison.md; reports: {pages}", highlight=False)


@app.command()
def predict(
    run: RunFolder,
    source: Annotated[
        str, typer.Option("--input", "-i", help="A file of rows; - reads a text a line.")
    ],
    budget: Annotated[
        float | None, typer.Option(help="Share of the routed work to spend, 0 to 1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; standard output if not given.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a batch.")] = 4096,
    trace: Annotated[bool, typer.Option(help="Add how many layers ran for each row.")] = False,
    paths: Annotated[int, typer.Option(help="Average so many random paths; adds the spread.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Repeats the routes of random routers.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:1, ...; the GPU, if there is one, if not given.")
    ] = None,
) -> None:
    """Predict the rows of a file: one JSON object a line."""
    _calm()
    from turnout.files import make_folder, write_text
    from turnout.predict import predict as lines_of

    if output is not None:
        make_folder(output.parent)
    lines = lines_of(
        run,
        source,
        budget=budget,
        batch_tokens=batch_tokens,
        trace=trace,
        paths=paths,
        device=device,
        seed=seed,
        say=lambda text: _stderr().print(text, markup=False, highlight=False),
    )
    if output is not None:
        write_text(output, "".join(f"{line}\n" for line in lines))
        return
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"cannot write to standard output: {error.strerror}") from error


@app.command()
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A folder, a name on the Hub, or a run.")
    ],
) -> None:
    """Show where a model can be routed and what its parts cost, or what a run holds."""
    _calm()
    from turnout.inspect import inspect as tables_of

    _stdout().print(tables_of(target))


@app.command()
def routers() -> None:
    """List the routers, with their fields and defaults."""
    from turnout.catalogue import routers as table_of_routers

    _stdout().print(table_of_routers())


@app.command()
def schema(
    results: Annotated[bool, typer.Option("--results", help="Of results.json instead.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    if results:
        from turnout.measure.results import Results

        typer.echo(json.dumps(Results.model_json_schema(), indent=2))
        return
    from turnout.recipe import schema as schema_of

    typer.echo(json.dumps(schema_of(), indent=2))


def main() -> None:
    """The entry point."""
    keep()
    app()


def _stderr() -> Console:
    return Console(stderr=True, soft_wrap=True)


def _stdout() -> Console:
    """Wide enough for our tables where nobody looks: in files and pipes."""
    return Console(width=None if sys.stdout.isatty() else 140)


def _bars(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _sayer(quiet: bool) -> Any:
    """Prints to standard error, above a progress bar that may be there."""

    def say(text: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            _stderr().print(text, markup=False)

    return (lambda text: None) if quiet else say


def _listed(text: str) -> list[str]:
    """What stands between commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seeds wants whole numbers with commas between, as 0,1,2; got {text!r}")
    return int(text)


def _calm() -> None:
    """The libraries below keep their notes and bars to themselves; ours say what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # it tells of each retry
