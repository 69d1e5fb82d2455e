"""Pico hosts: real Transformers models of three layers, built from a config. One line a family.

A new family is one record in `turnout.hosts.families` and one line in `HOSTS`; it then has to
pass every law in tests/laws. Weights are larger than the usual start, so that each layer matters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

LAYERS, WIDTH, VOCAB = 3, 32, 60
COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
)
GROUPED: dict[str, Any] = dict(COMMON, num_key_value_heads=2)
# the eager way computes in float64 too
MIXTURE: dict[str, Any] = dict(GROUPED, num_experts_per_tok=2, experts_implementation="eager")
SEQ2SEQ: dict[str, Any] = dict(
    vocab_size=VOCAB,
    d_model=WIDTH,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
    init_std=0.2,
)


@dataclass(frozen=True)
class Host:
    """One line of the table: the model's class, its config, and what it reads.

    reads: text, pairs (encoder and decoder), image or speech. stacks: names of its block lists.
    heads: can its heads be routed.
    """

    name: str
    model: str
    config: Callable[[], Any]
    reads: str = "text"
    stacks: tuple[str, ...] = ("encoder",)
    heads: bool = True

    def build(self, attention: str = "sdpa") -> hf.PreTrainedModel:
        """A fresh copy in eval mode: the same weights each time."""
        return deepcopy(_built(self.name, attention))

    def inputs(self, padding: str = "right") -> dict[str, Tensor]:
        """A batch of three; the middle sequence is shorter. padding: right, left or none."""
        return make_inputs(self.reads, padding)

    def has(self, *sites: str) -> None:
        """Skip the test for what this host cannot be routed at."""
        if "head" in sites and not self.heads:
            pytest.skip("the heads of this host depend on each other")

    @property
    def causal(self) -> bool:
        """Does a token see only the earlier ones."""
        return "decoder" in self.stacks

    @property
    def targets(self) -> tuple[str, ...]:
        """Linear layers of a block that may get adapters; a mixture's experts hold no layers."""
        attention = ("query", "key", "value", "output")
        return (
            attention
            if hasattr(self.config(), "num_experts_per_tok")
            else (*attention, "in", "out")
        )

    @property
    def hideable(self) -> bool:
        """Can skipped tokens be removed from attention."""
        return self.stacks == ("encoder",)


def _pair_config() -> Any:
    """Two BERTs."""
    made = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.BertConfig(**COMMON), hf.BertConfig(**COMMON)
    )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size"):
        setattr(made, name, COMMON[name])
    made.decoder_start_token_id = 1
    return made


DECODER, BOTH = ("decoder",), ("encoder", "decoder")
SPEECH: dict[str, Any] = dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=48,
    conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 4), num_feat_extract_layers=2,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, layerdrop=0.0,
    feat_extract_norm="layer", classifier_proj_size=16, mask_time_prob=0.0, initializer_range=0.2,
)  # fmt: skip

HOSTS = (
    Host("bert", "BertForSequenceClassification", lambda: hf.BertConfig(**COMMON, num_labels=3)),
    Host("roberta", "RobertaForTokenClassification", lambda: hf.RobertaConfig(**COMMON)),
    Host(
        "modernbert",
        "ModernBertForSequenceClassification",
        lambda: hf.ModernBertConfig(**COMMON, cls_token_id=1, sep_token_id=2, local_attention=4),
    ),
    Host(
        "distilbert",
        "DistilBertForSequenceClassification",
        lambda: hf.DistilBertConfig(
            vocab_size=VOCAB, dim=WIDTH, n_layers=LAYERS, n_heads=4, hidden_dim=48,
            max_position_embeddings=64, initializer_range=0.2,
        ),
    ),
    Host(
        "electra",
        "ElectraForSequenceClassification",
        lambda: hf.ElectraConfig(**COMMON, embedding_size=16),
    ),
    Host("llama", "LlamaForCausalLM", lambda: hf.LlamaConfig(**GROUPED), stacks=DECODER),
    Host("qwen2", "Qwen2ForCausalLM", lambda: hf.Qwen2Config(**GROUPED), stacks=DECODER),
    Host(
        "qwen3",
        "Qwen3ForCausalLM",
        lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
        stacks=DECODER,
    ),
    Host(
        "gemma3",
        "Gemma3ForCausalLM",
        lambda: hf.Gemma3TextConfig(
            **GROUPED, head_dim=8, sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        stacks=DECODER,
    ),
    Host(
        "mistral",
        "MistralForCausalLM",
        lambda: hf.MistralConfig(**GROUPED, sliding_window=4),
        stacks=DECODER,
    ),
    Host(
        "gpt2",
        "GPT2LMHeadModel",
        lambda: hf.GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64,
            bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        ),
        stacks=DECODER,
    ),
    Host(
        "mixtral",
        "MixtralForCausalLM",
        lambda: hf.MixtralConfig(**MIXTURE, num_local_experts=4),
        stacks=DECODER,
    ),
    Host(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        lambda: hf.Qwen3MoeConfig(
            **MIXTURE, head_dim=8, num_experts=4, moe_intermediate_size=24,
        ),
        stacks=DECODER,
    ),
    Host(
        "olmoe",
        "OlmoeForCausalLM",
        lambda: hf.OlmoeConfig(**MIXTURE, num_experts=4),
        stacks=DECODER,
        heads=False,
    ),
    Host("phi", "PhiForCausalLM", lambda: hf.PhiConfig(**COMMON), stacks=DECODER),
    Host(
        "t5",
        "T5ForConditionalGeneration",
        lambda: hf.T5Config(
            vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=4,
            decoder_start_token_id=0, pad_token_id=0,
        ),
        "pairs",
        BOTH,
    ),
    Host("bart", "BartForConditionalGeneration", lambda: hf.BartConfig(**SEQ2SEQ), "pairs", BOTH),
    Host("marian", "MarianMTModel", lambda: hf.MarianConfig(**SEQ2SEQ), "pairs", BOTH),
    Host("pair", "EncoderDecoderModel", lambda: _pair_config(), "pairs", BOTH),
    Host(
        "vit",
        "ViTForImageClassification",
        lambda: hf.ViTConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
            intermediate_size=48, image_size=16, patch_size=4, initializer_range=0.2,
        ),
        "image",
    ),
    Host(
        "wav2vec2",
        "Wav2Vec2ForSequenceClassification",
        lambda: hf.Wav2Vec2Config(**SPEECH),
        "speech",
    ),
    Host(
        "wav2vec2_stable",
        "Wav2Vec2ForSequenceClassification",
        lambda: hf.Wav2Vec2Config(**SPEECH, do_stable_layer_norm=True),
        "speech",
    ),
)  # fmt: skip
BY_NAME = {host.name: host for host in HOSTS}


@functools.cache
def _built(name: str, attention: str) -> hf.PreTrainedModel:
    host = BY_NAME[name]
    config = host.config()
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(hf, host.model)(config).eval()


def make_inputs(reads: str, padding: str = "right") -> dict[str, Tensor]:
    """Inputs of one kind, the same each time: 3 sequences, the middle one padded by a third."""
    generator = torch.Generator().manual_seed(1)
    if reads == "image":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    if reads == "speech":
        mask = torch.ones(3, 320, dtype=torch.long)
        mask[1, 200:] = 1 if padding == "none" else 0
        return {
            "input_values": torch.randn(3, 320, generator=generator) * mask,
            "attention_mask": mask,
        }
    ids = torch.randint(3, VOCAB, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[1, slice(6, None) if padding == "right" else slice(0, 3)] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if reads == "pairs":  # the decoder's padding lies on the right, whatever the encoder's
        short = make_inputs("text", "none" if padding == "none" else "right")
        inputs["decoder_input_ids"] = short["input_ids"][:, :7]
        inputs["decoder_attention_mask"] = short["attention_mask"][:, :7]
    return inputs


def output_mask(inputs: dict[str, Tensor], logits: Tensor) -> Tensor:
    """1 where the logits belong to a real token, broadcast to their shape."""
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    if logits.ndim == 2 or mask is None:
        return torch.ones_like(logits)
    return mask[:, :, None].expand_as(logits).to(logits.dtype)
