"""The commands that write: chat and generate, and all of them mounted for ``turnout.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turnout.console import bars, calm, stderr, stdout
from turnout.generation.cli_many import augment, vary
from turnout.generation.options import (
    STOPPED,
    Batch,
    Beams,
    Budget,
    Device,
    Greedy,
    MaxTokens,
    MinP,
    Model,
    Noise,
    Penalty,
    Quiet,
    Seed,
    Temperature,
    TopK,
    TopP,
)


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: turnout chat RUN --budget 0.7 --history talk.json")(chat)
    app.command(
        epilog='Example: turnout generate RUN "Once upon a time" --samples 3 --side-by-side'
    )(generate)
    app.command(
        epilog="Example: turnout augment RUN --data train.csv --out more.csv --per-example 3 "
        "--judge test.csv"
    )(augment)
    app.command(
        epilog="Example: turnout vary RUN --prompts prompts.txt --samples 8 "
        "--arms temperature=0.7,1,1.3 --arms budget=0.5,0.75"
    )(vary)


def chat(
    model: Model,
    history: Annotated[
        Path | None, typer.Option(help="Keeps what is said; gone on with when it is there.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="Stored answers: CSV or JSON lines with question and answer."),
    ] = None,
    system: Annotated[str, typer.Option(help="A text before all that is said.")] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    beams: Beams = 1,
    repetition_penalty: Penalty = None,
    greedy: Greedy = False,
    budget: Budget = None,
    noise: Noise = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, and at the prompt ends the chat; /help there."""
    calm()
    from turnout.files import make_folder
    from turnout.generation.history import History

    if history is not None:
        make_folder(history.parent)
        if history.exists():
            History.load(history)  # before all that takes time
    from turnout.generation.chat import Chat
    from turnout.generation.settings import settings_of
    from turnout.generation.stored import Stored
    from turnout.generation.terminal import talk
    from turnout.generation.writer import Writer

    settings = settings_of(
        max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        beams=beams, repetition_penalty=repetition_penalty, greedy=greedy, budget=budget,
        noise=noise, seed=seed,
    )  # fmt: skip
    stored = None if answers is None else Stored.read(answers)
    writer = Writer.open(model, device)
    talk(Chat(writer, settings, system=system, history_file=history, stored=stored))


def generate(
    model: Model,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...")] = None,
    file: Annotated[str | None, typer.Option(help="A prompt a line; - is standard input.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each.")] = 1,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Continuations in columns.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON lines: prompt, text, tokens, seconds, share.")
    ] = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    beams: Beams = 1,
    repetition_penalty: Penalty = None,
    greedy: Greedy = False,
    budget: Budget = None,
    noise: Noise = None,
    seed: Seed = None,
    batch: Batch = 16,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Go on with prompts, several times each; what each text cost is told."""
    calm()
    from turnout.files import make_folder, write_text
    from turnout.generation.progress import progress
    from turnout.generation.samples import continuations, prompts_of, rows_of, shown
    from turnout.generation.settings import settings_of
    from turnout.generation.terminal import interruptible
    from turnout.generation.writer import Writer

    settings = settings_of(
        max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        beams=beams, repetition_penalty=repetition_penalty, greedy=greedy, budget=budget,
        noise=noise, seed=seed,
    )  # fmt: skip
    asked = prompts_of(prompts or [], file)
    if out is not None:
        make_folder(out.parent)
    writer, console, lines = Writer.open(model, device), stdout(), list[str]()
    finished = 0
    with interruptible(writer), progress(len(asked), "prompts", bars(quiet)) as done:
        texts = continuations(writer, asked, settings, samples, batch, done)
        for prompt, answers in zip(asked, texts, strict=False):
            lines += rows_of(prompt, answers)
            finished += all(each.stop != "interrupted" for each in answers)
            if not quiet:
                console.print(shown(prompt, answers, side_by_side, console.width))
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in lines))
        if not quiet:
            stderr().print(f"{len(lines)} rows: {out}", highlight=False)
    elif quiet:
        for line in lines:
            typer.echo(line)
    if finished < len(asked):
        stderr().print("stopped; what was written until then is kept")
        raise typer.Exit(STOPPED)
