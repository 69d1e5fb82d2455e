"""The commands that work on many rows: augment and vary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from turnout.console import bars, calm, sayer, stderr, stdout
from turnout.errors import UserError
from turnout.generation.options import (
    STOPPED,
    Budget,
    Device,
    MaxTokens,
    MinP,
    Model,
    Noise,
    Penalty,
    Quiet,
    Temperature,
    TopK,
    TopP,
)


def augment(
    model: Model,
    data: Annotated[str, typer.Option(help="Labelled rows.")],
    out: Annotated[Path, typer.Option(help="New rows: .csv, .tsv or .jsonl.")],
    per_example: Annotated[int, typer.Option(help="Texts to write for each row.")] = 1,
    text: Annotated[str, typer.Option(help="The column of the text.")] = "text",
    label: Annotated[str, typer.Option(help="The column of the label.")] = "label",
    examples: Annotated[int, typer.Option(help="Rows of one label in a prompt.")] = 4,
    template: Annotated[str, typer.Option(help="A line of a prompt.")] = "{label}: {text}",
    likeness: Annotated[
        float, typer.Option(help="Jaccard index from which a text counts as seen before.")
    ] = 0.8,
    check: Annotated[
        str | None,
        typer.Option(
            help="A run of a classification that must agree with the label; `none` checks nothing; "
            "a classifier of words trained on the rows if not given."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Least probability of the label.")] = 0.5,
    judge: Annotated[
        str | None, typer.Option(help="Test rows: accuracy without and with the new rows.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="With --judge: train this recipe twice, not the cheap classifier."),
    ] = None,
    max_tokens: MaxTokens = 48,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    budget: Budget = None,
    noise: Noise = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and draws.")] = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Grow a labelled training set with a language model. Run again, it goes on where it
    stopped."""
    calm()
    from turnout.files import make_folder
    from turnout.generation.augment import AugmentSettings
    from turnout.generation.augment_run import Job, run_job
    from turnout.generation.progress import progress
    from turnout.generation.settings import checked, settings_of

    settings = checked(
        AugmentSettings, per_example=per_example, examples=examples, template=template,
        likeness=likeness, threshold=threshold, seed=seed,
    )  # fmt: skip
    how = settings_of(
        max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, budget=budget, noise=noise, stop=("\n",),
    )  # fmt: skip
    if recipe is not None and judge is None:
        raise UserError("--recipe is for --judge, which names the test rows")
    make_folder(out.parent)
    job = Job(model, data, out, text, label, check, judge, recipe, device)
    bar = lambda total: progress(total, "texts", bars(quiet))  # noqa: E731
    report = run_job(job, settings, how, bar, sayer(quiet))
    if report is None:
        stderr().print("stopped; the same command goes on")
        raise typer.Exit(STOPPED)
    typer.echo(report)


def vary(
    model: Model,
    prompts: Annotated[str, typer.Option(help="A prompt a line.")],
    out: Annotated[Path, typer.Option(help="Results, JSON; gone on with when they are there.")],
    samples: Annotated[int, typer.Option(min=2, help="Texts for each prompt.")] = 8,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            help="Ways and values, as temperature=0.7,1: temperature, top-p, min-p, dropout, "
            "budget, noise; may be given several times."
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="An encoder whose vectors show the spread of meanings.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="An SVG of diversity against perplexity.")
    ] = None,
    measure: Annotated[str, typer.Option(help="The diversity that is drawn.")] = "distinct_2",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and paths.")] = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Measure what variety costs in quality, for several ways of having it."""
    calm()
    from turnout.files import make_folder
    from turnout.generation.settings import settings_of
    from turnout.generation.vary_run import table, vary_all
    from turnout.tasks.text import read_lines

    plain = settings_of(
        max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed,
    )  # fmt: skip
    asked = [line for line in read_lines(prompts) if line.strip()]
    make_folder(out.parent)
    how: dict[str, Any] = {"arms": arms, "encoder": encoder, "device": device}
    results = vary_all(
        model, asked, samples, plain, out, **how, drawn=bars(quiet), say=sayer(quiet)
    )
    if results is None:
        stderr().print("stopped; the same command goes on")
        raise typer.Exit(STOPPED)
    if picture is not None:
        from turnout.generation.variety_picture import picture as draw

        draw(results, picture, measure)
    stdout().print(table(results))
