"""A run of a three-layer host on made-up sentences, trained in a second or two."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from turnout.recipe import Recipe
from turnout.run import Run
from turnout.train.pipeline import train

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PLAIN = "the film a plot actor in city river rain . ,".split()
WORDS = [*SPECIAL, *PLAIN, "good", "bad"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)


def tiny_host(folder: Path, layers: int = 3) -> Path:
    """A host with small random weights, saved."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_data(path: Path, rows: int, seed: int) -> Path:
    """Sentences of 2 to 20 words; one word tells the label."""
    draw = random.Random(seed)
    lines = ["text\tlabel"]
    for _ in range(rows):
        words = [draw.choice(PLAIN) for _ in range(draw.randint(1, 19))]
        label = draw.choice(["good", "bad"])
        words.insert(draw.randrange(len(words) + 1), label)
        lines.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_recipe(folder: Path, **measure: Any) -> Recipe:
    """An exit router on three layers; host and data are made in the folder."""
    return Recipe.model_validate(
        {
            "model": str(tiny_host(folder / "host")),
            "task": {
                "kind": "classification",
                "train": str(tiny_data(folder / "train.tsv", 96, 0)),
                "validation": str(tiny_data(folder / "validation.tsv", 40, 1)),
                "test": str(tiny_data(folder / "test.tsv", 60, 2)),
                "max_length": 24,
            },
            "routers": [{"kind": "exit"}],
            "train": {"epochs": 1, "batch_size": 16, "dropout": 0.0, "precision": "fp32"},
            "measure": {
                "budgets": [0.8, 0.5],
                "static": ["first-1", "every-other"],
                "repeats": 2,
                "dtype": "fp32",
                "batch_tokens": 256,
                "bootstrap": 50,
                **measure,
            },
        }
    )


def tiny_run(folder: Path, recipe: Recipe) -> Run:
    """Train it."""
    return train(recipe, folder / "run", say=lambda text: None, progress=False)
