"""A language model as the routing layer: its blocks stand between a backbone and the heads.

The states of the backbone, h (B, T, D), are normalised and projected to the width of a causal
language model, run through its blocks as if they were embedded tokens, projected back and added:
h + s P_2 LM(P_1 n(h)). Frozen blocks of a language model help encoders of other things (Pang et al.
2023, arXiv 2310.12973: their F_LM is LM, their linear maps P_1 and P_2 are ours). The scale s
starts at 0, so that a new bridge changes nothing.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel

from turnout.hosts.cut import cut_host


class Bridge(nn.Module):
    """width: of the backbone, D. config: of the language model, with as many blocks as there are
    to be."""

    def __init__(self, width: int, config: Any, blocks: PreTrainedModel | None = None) -> None:
        super().__init__()
        made: Any = AutoModel.from_config(_wordless(config)) if blocks is None else blocks
        inner = config.get_text_config().hidden_size
        made.set_input_embeddings(nn.Embedding(1, inner))  # it is given states, never tokens
        self.blocks = made
        self.into = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, state_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        inner = self.into(F.layer_norm(state_BTD, state_BTD.shape[-1:]))
        found = self.blocks(inputs_embeds=inner, attention_mask=mask_BT, use_cache=False)[0]
        return state_BTD + self.scale * self.out(found.to(state_BTD.dtype))


def bridge_of(width: int, model: PreTrainedModel, layers: int | None) -> tuple[Bridge, Any]:
    """A bridge with the first blocks of a language model (as AutoModel gives it; None = all), and
    the config that makes an empty one like it."""
    depth = model.config.get_text_config().num_hidden_layers
    if layers is not None and layers < depth:
        model = cut_host(model, f"first-{layers}")
    config = _wordless(model.config)
    return Bridge(width, config, model), config


def _wordless(config: Any) -> Any:
    """A config with a vocabulary of one word: tables of embeddings are not needed."""
    config = deepcopy(config)
    text = config.get_text_config()
    text.vocab_size, text.pad_token_id = 1, None
    return config
