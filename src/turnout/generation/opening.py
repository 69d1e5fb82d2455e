"""Open what can write: a run, a saved routed model, or any language model of Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from turnout.errors import UserError, first_line
from turnout.files import read_json
from turnout.run import is_run, open_run
from turnout.train.host import locate, open_config, open_tokenizer
from turnout.train.saving import check_weights, load, load_tokenizer, quiet_loading


def open_model(name: str | Path) -> tuple[PreTrainedModel, Any]:
    """A model that writes, in eval mode, and its tokenizer.

    name: a run folder, a folder of a routed model, a folder of a causal or encoder-decoder language
    model, or the name of one on the Hub; folders come first. No code that comes with a model is
    ever run. Raises UserError: not there, cut short, or a model that does not write.
    """
    model, tokenizer = _opened(str(name))
    if not model.can_generate():
        raise UserError(
            f"{name}: {type(model).__name__} does not write text; name a language model, or a run "
            "whose task writes"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{name}: the tokenizer has neither pad_token nor eos_token: set one in its "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _opened(name: str) -> tuple[PreTrainedModel, Any]:
    folder = Path(name).expanduser()
    if is_run(folder):
        run = open_run(folder)
        return run.load_routed(), run.tokenizer()
    config = folder / "config.json"
    if config.is_file():
        found = read_json(config)
        if isinstance(found, dict) and "turnout" in found:
            return load(folder), load_tokenizer(folder)
    return _language_model(name)


def _language_model(name: str) -> tuple[PreTrainedModel, Any]:
    source, config = locate(name), open_config(name)
    if Path(source).is_dir():
        check_weights(Path(source))
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with quiet_loading():
            model, report = kind.from_pretrained(
                source,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{name}: cannot be loaded as a language model: {first_line(error)}"
        ) from None
    lost = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lost:
        raise UserError(
            f"{name}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__}, such as "
            f"{lost[0]}; it is not a language model"
        )
    if not config.is_encoder_decoder and _looks_ahead(model):
        raise UserError(f"{name}: an encoder ({config.model_type}) does not write text")
    return model, open_tokenizer(name)


@torch.inference_mode()
def _looks_ahead(model: Any) -> bool:
    """Does a later token change what a model says after an earlier one: encoders have checkpoints
    that load as language models, and would write nonsense."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]])
    first_2V = model.eval()(ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
    return not torch.allclose(first_2V[0], first_2V[1], atol=1e-3, rtol=1e-3)
