"""An encoder-decoder out of two pretrained models: `turnout new` with an encoder and a decoder.

The decoder's attention to the encoder is new, and so is its step from states to words where the
pretrained model had none; all else is as it was trained (Rothe, Narayan and Severyn 2020, arXiv
1907.12461, whose BERT2BERT this makes of two BERTs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import EncoderDecoderModel

from turnout.errors import UserError, first_line
from turnout.files import atomic_dir, make_folder
from turnout.train.host import locate, open_config, open_tokenizer
from turnout.train.saving import quiet_loading


class NewPair(BaseModel):
    """encoder, decoder: folder, packaged name or name on the Hub; the same words in both. decoder:
    None = of the encoder's weights too. seed: of what is new."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Annotated[str, Field(min_length=1)]
    decoder: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def new_pair(page: NewPair, out: str | Path) -> Path:
    """Make the host and its tokenizer in a folder, whole or not at all. Raises UserError where a
    model is not there or cannot be a decoder, for tokenizers that differ, and for a folder that is
    there."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out")
    second = page.decoder or page.encoder
    tokenizer = open_tokenizer(page.encoder)
    if open_tokenizer(second).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"the tokenizers of {page.encoder} and {second} have other words")
    model = _joined(page.encoder, second, page.seed)
    config: Any = model.config
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    config.decoder_start_token_id = tokenizer.bos_token_id if begin is None else begin
    config.eos_token_id = tokenizer.eos_token_id if end is None else end
    config.pad_token_id = tokenizer.pad_token_id
    config.vocab_size = config.decoder.vocab_size
    settings: Any = model.generation_config
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        setattr(settings, name, getattr(config, name))
    make_folder(out.parent)
    with atomic_dir(out) as temp, quiet_loading():
        model.save_pretrained(temp)
        tokenizer.save_pretrained(temp)
    return out


def _joined(encoder: str, decoder: str, seed: int) -> EncoderDecoderModel:
    for name in (encoder, decoder):
        open_config(name)  # a clear error for what is not there
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(seed)
        try:
            made: Any = EncoderDecoderModel.from_encoder_decoder_pretrained(
                locate(encoder),
                locate(decoder),
                encoder_dtype=torch.float32,
                decoder_dtype=torch.float32,
            )
            return made
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{encoder} and {decoder} make no encoder-decoder: {first_line(error)}"
            ) from None
