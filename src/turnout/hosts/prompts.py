"""What is learned before every text, by PEFT: states of a prompt, or a prefix of keys and values.

``prompt`` (Lester et al. 2021, arXiv 2104.08691) and ``p-tuning`` (Liu et al. 2021, arXiv
2103.10385), where a small network makes them, stand before the embedded words; ``prefix`` (Li and
Liang 2021, arXiv 2101.00190) gives every attention keys and values more, and no state of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PrefixEncoder, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from turnout.errors import UserError


class Prompt(nn.Module):
    """kind: see above. count: tokens of it, P. config: of the backbone."""

    def __init__(self, kind: str, count: int, config: Any) -> None:
        super().__init__()
        text = config.get_text_config()
        self.kind, self.count = kind, count
        self.layers = text.num_hidden_layers
        self.heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self.width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.make = self._made(getattr(text, "embedding_size", None) or text.hidden_size)

    def _made(self, hidden: int) -> nn.Module:
        if self.kind == "prompt":
            return nn.Embedding(self.count, hidden)
        shared: dict[str, Any] = {
            "num_virtual_tokens": self.count,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": hidden,
            "task_type": "FEATURE_EXTRACTION",
        }
        if self.kind == "p-tuning":
            return PromptEncoder(PromptEncoderConfig(token_dim=hidden, **shared))
        own = {"token_dim": self.heads * self.width, "num_layers": self.layers}
        return PrefixEncoder(PrefixTuningConfig(**own, **shared))

    @property
    def states(self) -> int:
        """Positions of the backbone's output that are the prompt's."""
        return 0 if self.kind == "prefix" else self.count

    def forward(self, inputs: dict[str, Any], embedded_BTD: Tensor) -> dict[str, Any]:
        """The backbone's inputs with the prompt, from those without it. embedded: the words."""
        batch, device = len(embedded_BTD), embedded_BTD.device
        places_BP = torch.arange(self.count, device=device).expand(batch, self.count)
        made = self.make(places_BP).to(embedded_BTD.dtype)
        out = {key: value for key, value in inputs.items() if key != "input_ids"}
        mask_BT = out.get("attention_mask")
        if mask_BT is None:
            mask_BT = torch.ones(embedded_BTD.shape[:2], dtype=torch.long, device=device)
        out["attention_mask"] = torch.cat([mask_BT.new_ones(batch, self.count), mask_BT], 1)
        if self.kind == "prefix":
            return {**out, "inputs_embeds": embedded_BTD, "past_key_values": self._cache(made)}
        if (types_BT := out.get("token_type_ids")) is not None:
            out["token_type_ids"] = torch.cat([types_BT.new_zeros(batch, self.count), types_BT], 1)
        return {**out, "inputs_embeds": torch.cat([made, embedded_BTD], 1)}

    def _cache(self, made_BPN: Tensor) -> DynamicCache:
        """Keys and values of every layer; made: 2 x layers x heads x width numbers a token."""
        shape = (*made_BPN.shape[:2], 2 * self.layers, self.heads, self.width)
        each = made_BPN.view(shape).permute(2, 0, 3, 1, 4)
        return DynamicCache(list(zip(each[0::2], each[1::2], strict=True)))


def check_prefix(backbone: PreTrainedModel) -> None:
    """Raise UserError where a host's attention reads no keys and values from outside."""
    if "past_key_values" not in inspect.signature(type(backbone).forward).parameters:
        raise UserError(
            f"strategy: prefix needs attention that reads a cache, which {type(backbone).__name__} "
            "has not; use prompt or p-tuning"
        )
