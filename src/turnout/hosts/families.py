"""The host families that ship with turnout, one record each. See docs/hosts.md to add one."""

from __future__ import annotations

from dataclasses import replace

from turnout.hosts.family import Family, Neurons, Stack, leaves
from turnout.registry import Registry

FAMILIES: Registry[Family] = Registry("host family")
_NO_CHUNKS = ("chunk_size_feed_forward", 0, "chunked feed-forward splits the packed rows")


def register_family(family: Family) -> Family:
    """Add a host family, so that models with its ``model_types`` can be routed."""
    return FAMILIES.add(family.name, family)


_bert = Stack(
    name="encoder",
    blocks="encoder.layer",
    attention=leaves(
        query="attention.self.query",
        visible="attention.self.key attention.self.value",
        residual="attention.output",
    ),
    ffn=leaves(open="intermediate", residual="output"),
    embeddings="embeddings",
    merge="attention.output.dense",
    neurons=Neurons(("intermediate.dense",), "output.dense"),
)
_bert_refuses = (
    _NO_CHUNKS,
    ("add_cross_attention", False, "cross-attention inside BERT is not described by this record"),
)
register_family(Family("bert", ("bert", "roberta"), (_bert,), _bert_refuses))
# ELECTRA may project its embeddings before the first block, so a span embeds again.
register_family(Family("electra", ("electra",), (replace(_bert, embeddings=""),), _bert_refuses))

_pair = replace(_bert, embeddings="", heads="encoder.num_attention_heads")
# Two of BERT's kind in an EncoderDecoderModel, the second with attention to the first.
register_family(
    Family(
        "pair",
        ("encoder-decoder",),
        (
            replace(_pair, blocks="encoder.encoder.layer"),
            replace(
                _pair,
                name="decoder",
                blocks="decoder.bert.encoder.layer",
                cross=leaves(query="crossattention.self.query", residual="crossattention.output"),
                mask="decoder_attention_mask",
                hideable=False,
                heads="decoder.num_attention_heads",
            ),
        ),
        whole=True,
    )
)

register_family(
    Family(
        "distilbert",
        ("distilbert",),
        (
            Stack(
                name="encoder",
                blocks="transformer.layer",
                attention=leaves(
                    query="attention.q_lin",
                    visible="attention.k_lin attention.v_lin",
                    delta="attention.out_lin",
                    norm="sa_layer_norm",
                ),
                ffn=leaves(delta="ffn", norm="output_layer_norm"),
                embeddings="embeddings",
                neurons=Neurons(("ffn.lin1",), "ffn.lin2"),
            ),
        ),
        (_NO_CHUNKS,),
    )
)

register_family(
    Family(
        "modernbert",
        ("modernbert",),
        (
            Stack(
                name="encoder",
                blocks="layers",
                attention=leaves(fused="attn.Wqkv", delta="attn.Wo"),
                ffn=leaves(delta="mlp"),
                embeddings="embeddings",
                neurons=Neurons(("mlp.Wi",), "mlp.Wo", halves=2),
            ),
        ),
    )
)

_llama = Stack(
    name="decoder",
    blocks="layers",
    attention=leaves(
        query="self_attn.q_proj",
        visible="self_attn.k_proj self_attn.v_proj",
        delta="self_attn.o_proj",
    ),
    ffn=leaves(delta="mlp"),
    hideable=False,
    neurons=Neurons(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    final="norm",
)
register_family(Family("llama", ("llama", "mistral", "qwen2", "qwen3"), (_llama,)))

_mixture = replace(_llama, ffn=leaves(sequence="mlp"), experts="mlp.experts")
# Mixtures of experts: blocks of Llama's kind whose mlp chooses experts for each token.
register_family(
    Family(
        "mixture",
        ("mixtral", "qwen3_moe"),
        (_mixture,),
    )
)
# OLMoE normalises queries and keys across heads, so a skipped head would change the others.
register_family(Family("olmoe", ("olmoe",), (replace(_mixture, heads=""),)))

# Gemma 3 normalises a sub-block's result before adding it: that norm of a zero row is zero.
register_family(Family("gemma3", ("gemma3_text",), (_llama,)))

register_family(
    Family(
        "phi",
        ("phi",),
        (
            replace(
                _llama,
                attention=leaves(
                    query="self_attn.q_proj",
                    visible="self_attn.k_proj self_attn.v_proj",
                    delta="self_attn.dense",
                ),
                neurons=Neurons(("mlp.fc1",), "mlp.fc2"),
                final="final_layernorm",
            ),
        ),
    )
)

register_family(
    Family(
        "gpt2",
        ("gpt2",),
        (
            Stack(
                name="decoder",
                blocks="h",
                attention=leaves(fused="attn.c_attn", delta="attn.c_proj"),
                whole_heads=True,
                ffn=leaves(delta="mlp"),
                hideable=False,
                neurons=Neurons(("mlp.c_fc",), "mlp.c_proj"),
                final="ln_f",
            ),
        ),
        (
            (
                "add_cross_attention",
                False,
                "cross-attention inside GPT-2 is not described by this record",
            ),
        ),
    )
)


def _t5_neurons(path: str) -> Neurons:
    """Of the plain and of the gated network."""
    return Neurons((f"{path}.wi", f"{path}.wi_0", f"{path}.wi_1"), f"{path}.wo")


_t5_attention = leaves(
    query="layer.0.SelfAttention.q",
    visible="layer.0.SelfAttention.k layer.0.SelfAttention.v",
    delta="layer.0.SelfAttention.o",
)
register_family(
    Family(
        "t5",
        ("t5",),
        (
            Stack(
                name="encoder",
                blocks="encoder.block",
                attention=_t5_attention,
                ffn=leaves(delta="layer.1.DenseReluDense"),
                neurons=_t5_neurons("layer.1.DenseReluDense"),
                tuple_output=True,
            ),
            Stack(
                name="decoder",
                blocks="decoder.block",
                attention=_t5_attention,
                cross=leaves(query="layer.1.EncDecAttention.q", delta="layer.1.EncDecAttention.o"),
                ffn=leaves(delta="layer.2.DenseReluDense"),
                neurons=_t5_neurons("layer.2.DenseReluDense"),
                mask="decoder_attention_mask",
                tuple_output=True,
                hideable=False,
                final="decoder.final_layer_norm",
            ),
        ),
    )
)

_bart_encoder = Stack(
    name="encoder",
    blocks="encoder.layers",
    attention=leaves(
        query="self_attn.q_proj",
        visible="self_attn.k_proj self_attn.v_proj",
        delta="self_attn.out_proj",
        norm="self_attn_layer_norm",
    ),
    ffn=leaves(open="fc1", close="fc2", norm="final_layer_norm"),
    heads="encoder_attention_heads",
    neurons=Neurons(("fc1",), "fc2"),
)
_bart_decoder = replace(
    _bart_encoder,
    name="decoder",
    blocks="decoder.layers",
    cross=leaves(
        query="encoder_attn.q_proj",
        delta="encoder_attn.out_proj",
        norm="encoder_attn_layer_norm",
    ),
    mask="decoder_attention_mask",
    hideable=False,
    heads="decoder_attention_heads",
    final="",
)
register_family(Family("bart", ("bart", "marian"), (_bart_encoder, _bart_decoder)))

register_family(
    Family(
        "vit",
        ("vit",),
        (
            Stack(
                name="encoder",
                blocks="layers",
                attention=leaves(
                    query="attention.q_proj",
                    visible="attention.k_proj attention.v_proj",
                    delta="attention.o_proj",
                ),
                ffn=leaves(delta="mlp"),
                mask="",
                neurons=Neurons(("mlp.fc1",), "mlp.fc2"),
            ),
        ),
    )
)

_speech = Stack(
    name="encoder",
    blocks="encoder.layers",
    attention=leaves(
        query="attention.q_proj",
        visible="attention.k_proj attention.v_proj",
        delta="attention.out_proj",
        norm="layer_norm",
    ),
    ffn=leaves(delta="feed_forward", norm="final_layer_norm"),
    neurons=Neurons(("feed_forward.intermediate_dense",), "feed_forward.output_dense"),
    mask_method="_get_feature_vector_attention_mask",
)
register_family(
    Family(
        "wav2vec2",
        ("wav2vec2",),
        (_speech,),
        (("do_stable_layer_norm", False, "its norms stand before the sub-blocks"),),
    )
)
register_family(
    Family(
        "wav2vec2-stable",
        ("wav2vec2",),
        (
            replace(
                _speech,
                attention=leaves(
                    query="attention.q_proj",
                    visible="attention.k_proj attention.v_proj",
                    delta="attention.out_proj",
                ),
                ffn=leaves(delta="feed_forward"),
            ),
        ),
        (
            ("do_stable_layer_norm", True, "its norms stand after the sub-blocks"),
            ("adapter_attn_dim", None, "its adapters would change tokens that skip a block"),
        ),
    )
)
