"""A tiny host and tiny data on disk, for whatever trains: real classes, a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOOD, BAD = "fine good warm witty lovely".split(), "dull bad cold slow awful".split()
FILLER = "the a film story was very and of with actor".split()
NAMES, PLACES = "Ann Bob Cem Dea".split(), "Rome Oslo Lima".split()
SPECIAL = "[PAD] [UNK] [CLS] [SEP]".split()
WORDS = [*SPECIAL, *GOOD, *BAD, *FILLER, *NAMES, *PLACES, "in", "met"]
SIZES: dict[str, Any] = dict(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    pad_token_id=0,
    initializer_range=0.2,
)


def tokenizer() -> Any:
    """One token a word."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Strip()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **names)


def save_host(folder: Path, config: Any = None) -> Path:
    """A two-layer BERT (or another config's base model; Llama's with its head) and its tokenizer,
    saved."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        writes = isinstance(config, hf.LlamaConfig)
        made = hf.AutoModelForCausalLM if writes else hf.AutoModel
        model = made.from_config(config or bert_config())
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert_config(**more: Any) -> hf.BertConfig:
    """Two layers, 16 wide."""
    return hf.BertConfig(**{**SIZES, **more})


def llama_config(**more: Any) -> hf.LlamaConfig:
    """A decoder of the same size, for the same tokenizer."""
    return hf.LlamaConfig(**{**SIZES, "bos_token_id": 2, "eos_token_id": 3, **more})


def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Encoded rows of one length as a batch."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def save_reviews(folder: Path, rows: int = 40) -> dict[str, Path]:
    """train.csv, validation.csv, test.csv (text, label); the label can be read off one word."""
    paths = {}
    generator = torch.Generator().manual_seed(3)

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    for name, count in (("train", rows), ("validation", rows // 2), ("test", rows // 2)):
        lines = ["text,label"]
        for row in range(count):
            filler = [pick(FILLER) for _ in range(2 + row % 4)]
            label = "positive" if row % 2 else "negative"
            lines.append(f"{' '.join([*filler, pick(GOOD if row % 2 else BAD)])},{label}")
        paths[name] = folder / f"{name}.csv"
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def save_texts(folder: Path, rows: int = 40) -> dict[str, Path]:
    """train.txt, validation.txt, test.txt: documents with blank lines between; each word says which
    comes next."""
    paths = {}
    for name, count in (("train", rows), ("validation", rows // 2), ("test", rows // 2)):
        starts = range(count)
        texts = [" ".join((FILLER * 3)[n % 10 : n % 10 + 3 + n % 7]) for n in starts]
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return paths


def save_entities(folder: Path, rows: int = 24) -> dict[str, Path]:
    """train.conll, validation.conll, test.conll: word and BIO tag a line."""
    paths = {}
    for name in ("train", "validation", "test"):
        blocks = []
        for row in range(rows):
            person, place = NAMES[row % len(NAMES)], PLACES[row % len(PLACES)]
            words = [(person, "B-PER"), ("met", "O"), ("the", "O"), ("actor", "O")]
            words = [*words[: 2 + row // 3 % 3], ("in", "O"), (place, "B-LOC")]
            blocks.append("\n".join(f"{word} {tag}" for word, tag in words))
        paths[name] = folder / f"{name}.conll"
        paths[name].write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return paths


RECIPE = """\
model: host
task:
  kind: classification
  train: train.csv
  validation: validation.csv
  test: test.csv
  max_length: 16
routers:
  - {kind: exit, granularity: sequence}
train:
  epochs: 2
  batch_size: 8
  precision: fp32
  learning_rate: 0.01
measure:
  budgets: [0.5]
  static: [first-1]
  repeats: 3
  dtype: fp32
  bootstrap: 100
"""


def save_recipe(folder: Path, text: str = RECIPE) -> Path:
    """Host, data and recipe in one folder; the path of the recipe."""
    save_host(folder / "host")
    save_reviews(folder)
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path
