"""Time of a pass that answers k tasks by `adapters`' Parallel composition, over a plain pass.

Runs in an environment of its own (that library needs another Transformers than we do), so it
imports nothing of ours: `python parallel_peer.py MODEL TEXTS.json REPEATS`, the figures as JSON on
the last line. Each task has a bottleneck adapter of the default size in every block, and a head.
"""

import json
import random
import statistics
import sys
import time

import adapters
import torch
import transformers
from adapters import AutoAdapterModel
from adapters.composition import Parallel

TASKS = 6


def passes(model, batches):
    """One pass over all texts."""

    def once():
        with torch.inference_mode():
            for batch in batches:
                model(**batch)

    return once


def main():
    """Median over the rounds of paired ratios, by number of tasks."""
    folder, texts, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with open(texts, encoding="utf-8") as file:
        batches = [
            tokenizer(group, padding=True, truncation=True, max_length=128, return_tensors="pt")
            for group in json.load(file)
        ]
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    arms = {"plain": passes(plain, batches)}
    names = [f"task{n}" for n in range(TASKS)]
    for count in range(1, TASKS + 1):
        model = AutoAdapterModel.from_pretrained(folder)
        for name in names[:count]:
            model.add_adapter(name, config="seq_bn")
            model.add_classification_head(name, num_labels=4)
        model.active_adapters = Parallel(*names[:count]) if count > 1 else names[0]
        arms[str(count)] = passes(model.eval(), batches)
    size = sum(p.numel() for p in plain.parameters())
    added = sum(p.numel() for p in model.parameters()) - size  # of all tasks, heads included
    seconds = {name: [] for name in arms}
    for name in arms:  # once to warm up
        arms[name]()
    for _ in range(repeats):
        for name in random.sample(list(arms), len(arms)):
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    found = {
        name: statistics.median(
            one / other for one, other in zip(seconds[name], seconds["plain"], strict=True)
        )
        for name in arms
        if name != "plain"
    }
    versions = {"adapters": adapters.__version__, "transformers": transformers.__version__}
    print(json.dumps({"ratio": found, "added": added, **versions}))


if __name__ == "__main__":
    main()
