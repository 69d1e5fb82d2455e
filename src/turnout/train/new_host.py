"""What `turnout new` makes: a host that nobody has trained yet, a tokenizer learned from texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from turnout.errors import UserError, first_line
from turnout.files import atomic_dir, make_folder
from turnout.tasks.table import read_table
from turnout.tasks.text import read_lines
from turnout.train.saving import quiet_loading

PAD, BEGIN, END, UNKNOWN, MASK = "<pad>", "<s>", "</s>", "<unk>", "<mask>"
SPECIAL = [PAD, BEGIN, END, UNKNOWN, MASK]


class TokenizerConfig(BaseModel):
    """texts: files of rows (.csv, .tsv, .jsonl, .parquet), or of plain lines (.txt). columns: that
    hold text. vocabulary: of byte pairs (Sennrich et al. 2016, arXiv 1508.07909), special tokens
    included. lowercase: of all letters. max_length: of an input, in tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: Annotated[list[str], Field(min_length=1)]
    columns: Annotated[list[str], Field(min_length=1)] = ["text"]
    vocabulary: Annotated[int, Field(ge=300)] = 8000
    lowercase: bool = False
    max_length: Annotated[int, Field(ge=8)] = 256


class NewHost(BaseModel):
    """family: as Transformers calls it (bart, t5, bert, llama, gpt2). config: fields of its config;
    sizes that are not given are the family's own, which are large. seed: of the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["host"] = "host"
    family: Annotated[str, Field(min_length=1)]
    config: dict[str, Any] = {}
    tokenizer: TokenizerConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def new_host(page: NewHost, out: str | Path) -> Path:
    """Make a host and its tokenizer in a folder, whole or not at all. Raises UserError for a family
    or field that Transformers does not know, files that cannot be read, and a folder that is there.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out")
    tokenizer = learned_tokenizer(page.tokenizer)
    model = fresh_model(page, tokenizer)
    make_folder(out.parent)
    with atomic_dir(out) as temp, quiet_loading():
        model.save_pretrained(temp)
        tokenizer.save_pretrained(temp)
    return out


def learned_tokenizer(config: TokenizerConfig) -> Any:
    """Byte pairs of the texts; each input is put between BEGIN and END."""
    core = Tokenizer(models.BPE(unk_token=UNKNOWN))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *([normalizers.Lowercase()] if config.lowercase else [])]
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(config.texts, config.columns), trainer)
    ids = [(name, core.token_to_id(name)) for name in (BEGIN, END)]
    core.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} $B:1 {END}:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=config.max_length,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        cls_token=BEGIN,
        sep_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
    )


def fresh_model(page: NewHost, tokenizer: Any) -> PreTrainedModel:
    """A model of the family with random weights, for the tokenizer's vocabulary."""
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **page.config,
    }
    try:
        plain = AutoConfig.for_model(page.family)
    except ValueError as error:
        raise UserError(f"family {page.family!r}: {first_line(error)}") from None
    unknown = [name for name in page.config if not hasattr(plain, name)]
    if unknown:
        raise UserError(f"config.{unknown[0]}: {type(plain).__name__} has no such field")
    if plain.is_encoder_decoder:
        fields = {
            "decoder_start_token_id": tokenizer.bos_token_id,
            "forced_eos_token_id": None,
        } | fields
    config = AutoConfig.for_model(page.family, **fields)
    writes = page.family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and _looks_back(config)
    made: Any = AutoModelForCausalLM if writes else AutoModel
    if config.is_encoder_decoder:
        made = AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(page.seed)
        try:
            return made.from_config(config)
        except (ValueError, TypeError, ZeroDivisionError, AssertionError) as error:
            raise UserError(f"config of {page.family!r}: {first_line(error)}") from None


def _looks_back(config: Any) -> bool:
    """Is it a decoder: encoders have a class that writes too, for special uses."""
    return not hasattr(config, "type_vocab_size") and not config.is_encoder_decoder


def _texts(files: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    for file in files:
        if file.endswith(".txt"):
            yield from (line for line in read_lines(file) if line.strip())
            continue
        table = read_table(file)
        table.require(*columns)
        for name in columns:
            for row, value in enumerate(table.columns[name]):
                if not isinstance(value, str):
                    raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")
                yield value
