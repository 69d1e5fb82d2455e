"""The commands. Thin: each reads its arguments, calls one function, prints what comes back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from turnout._version import __version__
from turnout.allocator import keep
from turnout.console import bars as _bars
from turnout.console import calm as _calm
from turnout.console import listed as _listed
from turnout.console import sayer as _sayer
from turnout.console import stderr as _stderr
from turnout.console import stdout as _stdout
from turnout.errors import UserError
from turnout.generation.cli import mount
from turnout.generation.options import STOPPED

MISTAKE, REFUSED = 2, 3


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
def new(
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="A YAML page.")],
    out: Annotated[Path, typer.Option(help="Folder of the host; must not be there yet.")],
) -> None:
    """Make a host that nobody has trained: random weights and a tokenizer learned from texts, or an
    encoder-decoder out of two pretrained models."""
    _calm()
    from turnout.recipe import plain_page
    from turnout.recipe_yaml import read_page
    from turnout.train.new_host import NewHost, new_host
    from turnout.train.new_pair import NewPair, new_pair

    if "encoder" in read_page(page).data:
        made = new_pair(plain_page(page, NewPair, []), out)
    else:
        made = new_host(plain_page(page, NewHost, [("tokenizer", "texts")]), out)
    _stderr().print(f"done: {made}; next: a recipe with model: {made}", highlight=False)


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
    """Train the dense host, then the routed model; or several tasks on one backbone. Run again, it
    goes on where it stopped."""
    _calm()
    from turnout.double.pipeline import train_tasks
    from turnout.double.recipe import TasksRecipe, names_tasks
    from turnout.recipe import load
    from turnout.train import pipeline

    how: dict[str, Any] = {"say": _sayer(quiet), "progress": _bars(quiet)}
    try:
        if names_tasks(recipe):
            run: Any = train_tasks(TasksRecipe.load(recipe, overrides or []), out, **how)
        else:
            run = pipeline.train(load(recipe, overrides or []), out, **how)
    except KeyboardInterrupt:
        _stderr().print("\nstopped; the same command goes on from the last checkpoint")
        raise typer.Exit(STOPPED) from None
    if not quiet:
        _stderr().print(f"done: {run.path}; next: turnout measure {run.path}", highlight=False)


@app.command()
def search(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML page of tasks.")],
    fields: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=LOW..HIGH|FIELD=A|B...",
            help="Settings of `train` to search, as learning_rate=1e-5..1e-3 'strategy=full|lora'.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the search; made, or gone on with.")],
    trials: Annotated[int, typer.Option(min=1, help="How many in all.")] = 20,
    quiet: Annotated[bool, typer.Option(help="Say nothing.")] = False,
) -> None:
    """Search the settings of several tasks that do best on validation rows (by Optuna)."""
    _calm()
    from turnout.double.recipe import TasksRecipe
    from turnout.double.search import search as best_of
    from turnout.double.search import space_of

    best_of(TasksRecipe.load(recipe), out, space_of(fields), trials, say=_sayer(quiet))
    _stderr().print(f"the recipe: {out}/best.yaml; all trials: {out}/trials.json", highlight=False)


@app.command()
def measure(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of `measure`, as repeats=15."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print only the table.")] = False,
) -> None:
    """Measure quality, time, work and memory, beside cut models and random routes; of several
    tasks, each one's quality and what a pass costs that answers them."""
    _calm()
    from turnout.double.run import is_tasks_run
    from turnout.measure import run as measuring
    from turnout.measure.table import table
    from turnout.run import open_run

    if is_tasks_run(run):
        _measure_tasks(run, overrides or [], quiet)
        return
    opened = open_run(run)
    config = opened.measure_config(overrides or [])
    try:
        results = measuring.measure(opened, config, say=_sayer(quiet), progress=_bars(quiet))
    except KeyboardInterrupt:
        _stderr().print("\nstopped; the same command goes on with the cut models it has")
        raise typer.Exit(STOPPED) from None
    _stdout().print(table(results))
    _stderr().print(f"report: {run}/report.html", highlight=False)


def _measure_tasks(run: Path, overrides: list[str], quiet: bool) -> None:
    from turnout.double.measure import measure_tasks
    from turnout.double.picture import use_of_experts
    from turnout.double.run import open_tasks_run
    from turnout.double.table import tables

    opened = open_tasks_run(run)
    config = opened.measure_config(overrides)
    results = measure_tasks(opened, config, say=_sayer(quiet), progress=_bars(quiet))
    results.save(run / "results.json")
    if all(task.use for task in results.tasks):
        use_of_experts(results, run / "use.svg")
    _stdout().print(tables(results))
    _stderr().print(f"results: {run}/results.json", highlight=False)


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
    tasks: Annotated[
        str | None,
        typer.Option(help="Of a run of several tasks: some, with commas; all if not given."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help="A text a line for tasks of ranking to choose from; their own if none."),
    ] = None,
) -> None:
    """Predict the rows of a file: one JSON object a line."""
    _calm()
    from turnout.double.predict import predict_tasks
    from turnout.double.run import is_tasks_run
    from turnout.files import make_folder, write_text
    from turnout.predict import predict as lines_of

    if output is not None:
        make_folder(output.parent)
    how: dict[str, Any] = {"budget": budget, "batch_tokens": batch_tokens, "device": device}
    if is_tasks_run(run):
        if trace or paths != 1 or seed is not None:
            raise UserError("--trace, --paths and --seed are for runs of one task")
        wanted = None if tasks is None else _listed(tasks)
        lines = predict_tasks(run, source, tasks=wanted, candidates=candidates, **how)
    elif tasks is not None or candidates is not None:
        raise UserError(f"--tasks and --candidates: {run} is a run of one task")
    else:
        how |= {"trace": trace, "paths": paths, "seed": seed}
        lines = lines_of(
            run,
            source,
            say=lambda text: _stderr().print(text, markup=False, highlight=False),
            **how,
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
def update(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Option(help="New labelled rows, in the form of the training file.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Which task they are of; not needed where there is one.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="New rows to judge by; a fifth of --data if not given.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Over new and old rows.")] = 1.0,
    replay: Annotated[float, typer.Option(help="Old rows of each task to a new one.")] = 1.0,
    margin: Annotated[
        float, typer.Option(help="How much an old task may fall on its test rows.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the draws and the training.")] = 0,
    to: Annotated[
        int | None, typer.Option(help="Put this version in use, in place of training one.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Say only what came of it.")] = False,
) -> None:
    """Go on learning from new rows; refused where a task that was learned before falls by more than
    the margin. Every version is kept. Without --data and --to: lists them."""
    _calm()
    from turnout.double import versions
    from turnout.double.run import open_tasks_run
    from turnout.double.update import update as update_run

    if data is not None and to is not None:
        raise UserError("--data trains a version, --to goes back to one: give one of them")
    opened = open_tasks_run(run)
    if to is not None:
        versions.use(opened.path, to)
    if data is None:
        from turnout.double.table import versions_table

        _stdout().print(versions_table(opened.path))
        return
    how: dict[str, Any] = {"say": _sayer(quiet), "progress": _bars(quiet)}
    wanted = {"task": task, "test": test, "epochs": epochs, "replay": replay, "margin": margin}
    found = update_run(run, data, seed=seed, **wanted, **how)
    if not found.accepted:
        raise typer.Exit(REFUSED)


@app.command()
def add(
    run: RunFolder,
    page: Annotated[
        Path, typer.Argument(metavar="PAGE", help="A YAML page with one entry under `tasks`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    epochs: Annotated[
        float | None, typer.Option(help="Over the new task's rows; the recipe's if not given.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Say nothing, draw no progress bar.")] = False,
) -> None:
    """Add a task to a run of several tasks; the others answer as before, bit for bit."""
    _calm()
    from turnout.double.add import add_task, task_page

    name, config = task_page(page)
    how: dict[str, Any] = {"say": _sayer(quiet), "progress": _bars(quiet)}
    made = add_task(run, name, config, out, epochs=epochs, **how)
    if not quiet:
        _stderr().print(f"done: {made.path}; next: turnout measure {made.path}", highlight=False)


@app.command()
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A folder, a name on the Hub, or a run.")
    ],
) -> None:
    """Show where a model can be routed and what its parts cost, or what a run holds."""
    _calm()
    from turnout.double.run import is_tasks_run
    from turnout.inspect import inspect as tables_of

    if is_tasks_run(target):
        from turnout.double.inspect import inspect_tasks

        _stdout().print(inspect_tasks(target))
        return
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


mount(app)


def main() -> None:
    """The entry point."""
    keep()
    app()


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seeds wants whole numbers with commas between, as 0,1,2; got {text!r}")
    return int(text)
