"""Options that several commands have, and how they end."""

from __future__ import annotations

from typing import Annotated

import typer

STOPPED = 130
Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL", help="A run, a saved model, or a language model's name on the Hub."
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="The most that one answer has.")]
Temperature = Annotated[float | None, typer.Option(help="Of sampling; the model's own if none.")]
TopP = Annotated[float | None, typer.Option(help="Share of probability to draw from.")]
TopK = Annotated[int | None, typer.Option(help="Draw from so many tokens; 0 is all.")]
MinP = Annotated[float | None, typer.Option(help="Least part of the likeliest's probability.")]
Beams = Annotated[int, typer.Option(help="More than 1: beam search, which draws nothing.")]
Penalty = Annotated[float | None, typer.Option(help="Above 1: repeats are less likely.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]
Budget = Annotated[float | None, typer.Option(help="Share of the routed work, above 0 to 1.")]
Noise = Annotated[float | None, typer.Option(help="Scale of trained noise; 0 is none.")]
Seed = Annotated[int | None, typer.Option(help="Repeats draws and paths.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:1, ...; the GPU, if there is one.")]
Quiet = Annotated[bool, typer.Option(help="Print only what was asked for.")]
Batch = Annotated[int, typer.Option(min=1, help="Answers written at once.")]
