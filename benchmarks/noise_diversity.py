"""Does noise make texts differ for less than a temperature does: diversity at equal perplexity.

20 prompts, 10 texts of 40 tokens each. Every arm's texts are judged by the dense host (perplexity)
and among themselves, prompt by prompt. Noise on feed-forward outputs and on attention logits, its
size measured and not trained, or trained as variational inference, at several scales on top of a
temperature of 0.7; beside them temperature and top-p alone. Two hosts: a small Llama trained here
on Shakespeare (three seeds), and Gemma-3-270m with WikiText prompts (one seed), whose blocks stay
frozen while its noise learns. An arm of noise is compared with the line through the arms of
temperature, and of top-p, at its own perplexity.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from common import Benchmark, Row, gain, main, spread
from frontier_claim import WORK, named
from gemma import gemma_folder
from tasks_here import side_by_side
from transformers import AutoModelForCausalLM, set_seed
from untrained_noise import add_noise

from turnout.files import read_json, write_text
from turnout.generation.arms import Arm
from turnout.generation.settings import WriteSettings
from turnout.generation.vary import measure_arm
from turnout.generation.writer import Writer
from turnout.recipe import Recipe
from turnout.train.new_host import NewHost, new_host
from turnout.train.pipeline import train
from turnout.train.saving import quiet_loading

PROMPTS, SAMPLES, LENGTH = 20, 10, 40
COOL = 0.7  # temperature beneath noise
TEMPERATURES, TOP_PS = (0.6, 0.8, 1.0, 1.2), (0.7, 0.8, 0.9, 0.95)
SCALES = (0.5, 1.0, 2.0)
KINDS = {
    "ffn": {"kind": "ffn", "start": 0.2, "prior": 0.4, "per": "sequence"},
    "attention": {"kind": "attention", "start": 0.2, "prior": 0.4},
}
SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 640,
    "max_position_embeddings": 256,
}


def split(text: str, out: Path, quick: bool) -> dict[str, str]:
    """Speeches in three files: the last tenth to test, the tenth before to validate."""
    out.mkdir(parents=True, exist_ok=True)
    pieces = text.split("\n\n")
    pieces = pieces[:400] if quick else pieces
    tenth = len(pieces) // 10
    found = {}
    for name, part in (
        ("train", pieces[: -2 * tenth]),
        ("validation", pieces[-2 * tenth : -tenth]),
        ("test", pieces[-tenth:]),
    ):
        write_text(out / f"{name}.txt", "\n\n".join(part) + "\n")
        found[name] = str((out / f"{name}.txt").resolve())
    return found


def recipe(host: str, files: dict[str, str], seed: int, kind: str, quick: bool) -> Recipe:
    """Of a language model with one kind of noise."""
    frozen = "gemma" in host
    return Recipe.model_validate(
        {
            "model": host,
            "task": {"kind": "language", "documents": "blank-line", "max_length": 128, **files},
            "noise": [KINDS[kind]],
            "objectives": {"kl": 1e-5, "kl_anneal": 0.3, "distill": 0.0},
            "train": {
                "epochs": 0.001 if frozen else 1.0 if quick else 12.0,
                "routed_epochs": 1.0 if quick or frozen else 2.0,
                "batch_size": 16,
                "learning_rate": 1e-6 if frozen else 1e-3,
                "routed_learning_rate": 3e-4,
                "router_learning_rate": 1e-2,
                "freeze": "blocks" if frozen else "none",
                "dropout": 0.0,
                "precision": "bf16",
                "evaluate_every": 100_000,
                "seed": seed,
            },
        }
    )


def shakespeare(benchmark: Benchmark, seed: int) -> tuple[Path, dict[str, Path], list[str]]:
    """The trained dense host, trained noisy ones, and prompts."""
    work = WORK / named("noise-shakespeare", seed, benchmark.quick)
    text = (benchmark.folder("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")
    files = split(text, work.with_name(f"{work.name}-data"), benchmark.quick)
    host = work / "host"
    if not host.is_dir():
        page = {
            "family": "llama",
            "config": SIZES,
            "seed": seed,
            "tokenizer": {"texts": [files["train"]], "vocabulary": 2000, "max_length": 256},
        }
        new_host(NewHost.model_validate(page), host)
    runs: dict[str, Path] = {}
    dense: Path | None = None
    for kind in KINDS:
        print(f"== noise on {kind}, seed {seed}", flush=True)
        made = recipe(str(host), files, seed, kind, benchmark.quick)
        run = train(made, work / kind, dense=dense, progress=False)
        dense, runs[kind] = run.dense, run.path
    assert dense is not None
    lines = [line for line in Path(files["test"]).read_text(encoding="utf-8").splitlines()]
    starts = [" ".join(line.split()[:6]) for line in lines if len(line.split()) > 7]
    return dense, runs, starts[: 4 if benchmark.quick else PROMPTS]


def gemma_runs(benchmark: Benchmark) -> tuple[Path, dict[str, Path], list[str]]:
    """The same of Gemma on WikiText-2."""
    work = WORK / named("noise-gemma", 0, benchmark.quick)
    folder = benchmark.folder("wikitext2")
    text = (folder / "valid.txt").read_text(encoding="utf-8")[:400_000]
    pieces = [line.strip() for line in text.splitlines() if len(line.split()) > 20]
    files = split("\n\n".join(pieces), work.with_name(f"{work.name}-data"), benchmark.quick)
    runs = {}
    for kind in KINDS:
        print(f"== Gemma, noise on {kind}", flush=True)
        made = recipe(str(gemma_folder()), files, 0, kind, benchmark.quick)
        runs[kind] = train(made, work / kind, progress=False).path
    test = (folder / "test.txt").read_text(encoding="utf-8").splitlines()
    starts = [" ".join(line.split()[:12]) for line in test if len(line.split()) > 40]
    return gemma_folder(), runs, starts[: 2 if benchmark.quick else PROMPTS]


def writers(dense: Path, runs: dict[str, Path]) -> Iterator[tuple[str, Writer, list[Arm], float]]:
    """Models with their arms: name, writer, arms, temperature beneath them."""
    plain = Writer.open(dense)
    yield (
        "dense",
        plain,
        [
            *(Arm("temperature", value) for value in TEMPERATURES),
            *(Arm("top-p", value) for value in TOP_PS),
        ],
        1.0,
    )
    for kind, run in runs.items():
        with quiet_loading():
            model = AutoModelForCausalLM.from_pretrained(dense, dtype=plain.model.dtype).eval()
        add_noise(model, plain.tokenizer, KINDS[kind])
        arms = [Arm("noise", scale) for scale in SCALES]
        yield f"{kind}, untrained", Writer(model, plain.tokenizer), arms, COOL
        noisy = Writer.open(run)
        noisy.model.to(plain.model.dtype)
        yield f"{kind}, trained", noisy, arms, COOL


def measured(benchmark: Benchmark, host: str, seed: int) -> list[Row]:
    """All arms of a host and seed; a row is written as soon as it is there."""
    set_seed(seed)
    made = shakespeare(benchmark, seed) if host == "shakespeare" else gemma_runs(benchmark)
    dense, runs, prompts = made
    rows: list[Row] = []
    for name, writer, arms, heat in writers(dense, runs):
        plain = WriteSettings(max_new_tokens=LENGTH, temperature=heat, top_k=0, seed=seed)
        for arm in arms if not benchmark.quick else arms[::2]:
            found = measure_arm(writer, prompts, SAMPLES, plain, arm, batch=50)
            assert found is not None
            row: Row = {"host": host, "seed": seed, "model": name, "arm": arm.kind}
            row |= {"value": arm.value, "perplexity": found.perplexity.value}
            row |= {key: each.value for key, each in found.diversity.items()}
            row |= {"tokens": found.tokens, "seconds": found.seconds}
            rows.append(row)
            told = f"perplexity {row['perplexity']:.1f}, distinct-2 {row['distinct_2']:.3f}"
            print(f"  {host} {seed}, {name}, {arm.kind} {arm.value:g}: {told}", flush=True)
    for kind, run in runs.items():
        found_noise = read_json(run / "training.json")["routed"]["found"]["noise"]
        rows.append({"host": host, "seed": seed, "sigma_of": kind, "noise": found_noise})
    return rows


def above(rows: list[Row], row: Row, arm: str, measure: str) -> float | None:
    """How much more varied an arm is than a baseline at its perplexity; None = outside of it."""
    points = sorted(
        (math.log(each["perplexity"]), each[measure])
        for each in rows
        if each.get("arm") == arm and each["seed"] == row["seed"]
    )
    at = math.log(row["perplexity"])
    for (left, low), (right, high) in pairwise(points):
        if left <= at <= right:
            return row[measure] - (low + (high - low) * (at - left) / max(1e-9, right - left))
    return None


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Distinct-2 and 1 - self-BLEU of noise over the baselines, at its own perplexity."""
    entries: dict[str, Row] = {}
    judged = [{**row, "unlike": 1 - row["self_bleu"]} for row in rows if "arm" in row]
    for host in dict.fromkeys(row["host"] for row in judged):
        here = [row for row in judged if row["host"] == host]
        noisy = [row for row in here if row["arm"] == "noise"]
        for model, scale in dict.fromkeys((row["model"], row["value"]) for row in noisy):
            for arm in ("temperature", "top-p"):
                for measure in ("distinct_2", "unlike"):
                    found = [
                        above(here, row, arm, measure)
                        for row in noisy
                        if (row["model"], row["value"]) == (model, scale)
                    ]
                    known = [value for value in found if value is not None]
                    title = f"{host}, {model}, scale {scale:g}: {measure} above {arm}"
                    if len(known) == len(found):
                        entries[title] = gain(known)
    for row in rows:
        if "sigma_of" not in row:
            continue
        each = [fact["sigma"] / fact["start"] for fact in row["noise"].values()]
        entry = {"value": statistics.fmean(each), "goal": "0.1 to 10 times its start"}
        entry["met"] = all(fact["state"] == "steady" for fact in row["noise"].values())
        title = f"{row['host']}, seed {row['seed']}: sigma of {row['sigma_of']} over its start"
        entries[title] = {**entry, "over_layers": spread(each)}
    return entries


def run() -> None:
    benchmark = Benchmark("noise_diversity", "noise or temperature: diversity", (0, 1, 2))
    wanted = [("shakespeare", seed) for seed in benchmark.seeds]
    missing = [each for each in wanted if benchmark.find(host=each[0], seed=each[1]) is None]
    side_by_side(benchmark, [(measured, benchmark, *each) for each in missing])
    if not benchmark.quick and benchmark.find(host="gemma") is None:
        benchmark.add(measured(benchmark, "gemma", 0))
    benchmark.finish(
        verdict(benchmark.rows),
        [
            f"Noise is on top of a temperature of {COOL:g}; arms whose perplexity lies outside of "
            "the baseline's have no entry.",
            "Met: the whole interval over seeds is above 0; Gemma has one seed, so no interval.",
            "unlike: 1 - self-BLEU of the ten texts of a prompt.",
        ],
    )


if __name__ == "__main__":
    main(run)
