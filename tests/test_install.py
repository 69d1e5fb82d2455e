"""Installing routers: what is accepted, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate.hooks import ModelHook, add_hook_to_module
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.install import parse_router
from turnout.routers.gate import GateConfig
from turnout.routers.random_skip import RandomSkipConfig, RandomSkipRouter


def test_a_router_is_a_name_a_dict_or_a_config() -> None:
    for spec in ("gate", {"kind": "gate"}, GateConfig()):
        assert parse_router(spec) == GateConfig()
    model = turnout.install(BY_NAME["bert"].build(), ["gate"])
    assert [site.key for site in model.turnout.sites] == [f"encoder.{n}.layer" for n in range(3)]


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "gat",
            r"unknown router 'gat'; known: attention, .*, gate, .* Did you mean 'gate'\?",
        ),
        ({"site": "ffn"}, "unknown router ''"),
        (3, "by its kind, a dict of fields or a config, got 3"),
        ({"kind": "gate", "open": float("inf")}, r"router gate\.open: .*finite number, got inf"),
        ({"kind": "gate", "shap": "mlp"}, r"router gate\.shap: .*not permitted, got 'mlp'"),
        (
            {"kind": "gate", "shape": "cube"},
            r"router gate\.shape: .*'linear', 'mlp' or .*, got 'cube'",
        ),
        ({"kind": "gate", "site": "haed"}, r"router gate\.site: .*'attention'.*, got 'haed'"),
        ({"kind": "random-skip", "rate": 2}, r"router random-skip\.rate: .*less than.*, got 2"),
        ({"kind": "exit", "site": "ffn"}, r"router exit\.site: .*'layer', got 'ffn'"),
        ({"kind": "random-jump", "granularity": "token"}, r"random-jump\.granularity: .*'batch'"),
    ],
)
def test_a_wrong_router_is_named(spec: Any, message: str) -> None:
    with pytest.raises(turnout.UserError, match=message):
        parse_router(spec)


@pytest.mark.parametrize(
    "routers, message",
    [
        ([], "at least one router"),
        (
            ["gate", "random-skip"],
            r"two routers at site encoder\.0\.layer: 0_gate and 1_",
        ),
        ([{"kind": "gate", "hold_first": 3}], r"finds no site: .*hold_first=3.*encoder\.2\.layer"),
        ([{"kind": "gate", "stack": "decoder"}], "finds no site: .*stack=decoder"),
        ([{"kind": "exit", "granularity": "token"}], "a host that labels tokens"),
    ],
)
def test_a_refusal_changes_nothing(routers: list[Any], message: str) -> None:
    model = BY_NAME["bert"].build()
    classes, config = [type(module) for module in model.modules()], model.config.to_dict()
    with pytest.raises(turnout.UserError, match=message):
        turnout.install(model, routers)
    assert [type(module) for module in model.modules()] == classes
    assert model.config.to_dict() == config and not hasattr(model, "turnout")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_exit_needs_a_head_that_classifies(name: str) -> None:
    with pytest.raises(turnout.UserError, match="needs a host with a classification head"):
        turnout.install(BY_NAME[name].build(), ["exit"])


def test_install_twice_and_uninstall_twice_are_refused() -> None:
    model = turnout.install(BY_NAME["bert"].build(), ["gate"])
    with pytest.raises(turnout.UserError, match="routed already"):
        turnout.install(model, ["gate"])
    turnout.uninstall(model)
    with pytest.raises(turnout.UserError, match="not routed"):
        turnout.uninstall(model)


def test_an_unknown_family_lists_what_was_looked_for() -> None:
    config = hf.AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=32, num_attention_heads=4,
        intermediate_size=48,
    )  # fmt: skip
    with pytest.raises(turnout.UserError) as caught:
        turnout.install(hf.AlbertForSequenceClassification(config), ["gate"])
    message = str(caught.value)
    assert "model_type 'albert' (AlbertForSequenceClassification)" in message
    assert "bert: bert, roberta" in message and "llama: llama, mistral" in message
    assert "encoder.albert_layer_groups (1 x AlbertLayerGroup)" in message
    assert "docs/hosts.md" in message


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(turnout.UserError, match=r"got torch\.nn\.modules\.linear\.Linear"):
        turnout.install(torch.nn.Linear(2, 2), ["gate"])  # type: ignore[arg-type]


def test_a_config_that_the_record_cannot_serve_is_refused() -> None:
    model = BY_NAME["bert"].build()
    model.config.chunk_size_feed_forward = 4
    with pytest.raises(turnout.UserError, match=r"config\.chunk_size_feed_forward = 4"):
        turnout.install(model, ["random-skip"])


def test_a_host_that_leaves_out_blocks_itself_serves_but_does_not_train() -> None:
    host = BY_NAME["wav2vec2"]
    model = host.build()
    model.config.layerdrop = 0.1  # the default of this family
    turnout.install(model, "random-skip")
    model(**host.inputs())
    with pytest.raises(turnout.UserError, match=r"config.layerdrop is 0.1.*layerdrop=0.0"):
        model.train()(**host.inputs())


def test_decisions_that_see_later_tokens_are_told() -> None:
    with pytest.warns(UserWarning, match="later ones would then decide for earlier ones"):
        turnout.install(BY_NAME["llama"].build(), "gate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turnout.install(BY_NAME["llama"].build(), {"kind": "gate", "granularity": "token"})
        turnout.install(BY_NAME["llama"].build(), "random-skip")
        turnout.install(BY_NAME["t5"].build(), {"kind": "gate", "stack": "encoder"})
        turnout.install(BY_NAME["bert"].build(), "gate")


def test_a_router_of_ones_own_is_known_by_its_kind() -> None:
    class MineConfig(RandomSkipConfig):
        kind: str = "mine"  # type: ignore[assignment]

    class Mine(RandomSkipRouter):
        Config = MineConfig

    turnout.ROUTERS.add("mine", Mine)
    try:
        model = turnout.install(BY_NAME["bert"].build(), {"kind": "mine", "rate": 0.5})
        assert isinstance(model.turnout.all_routers()[0], Mine)
    finally:
        turnout.ROUTERS._entries.pop("mine")


def test_an_unknown_field_is_told_with_those_that_exist() -> None:
    with pytest.raises(turnout.UserError, match=r"gate.opened: Extra inputs.*open, temperature"):
        turnout.install(BY_NAME["bert"].build(), {"kind": "gate", "opened": 1})


def test_the_spec_is_in_the_config() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "gate", "layers": [-1]}])
    stored = model.config.to_dict()["turnout"]
    assert stored["version"] == 1 and stored["routers"][0]["layers"] == [-1]


def test_a_block_that_accelerate_hooked_is_refused() -> None:
    model = BY_NAME["bert"].build()
    add_hook_to_module(model.bert.encoder.layer[1].attention, ModelHook())
    before = [type(module) for module in model.modules()]
    with pytest.raises(turnout.UserError, match=r"block 1 of encoder\.layer is spread"):
        turnout.install(model, ["gate"])
    assert [type(module) for module in model.modules()] == before


def test_routers_must_agree_on_what_stays_visible() -> None:
    routers = [
        {"kind": "gate", "site": "attention", "visible": False},
        {"kind": "random-skip", "layers": [1]},
    ]
    with pytest.raises(turnout.UserError, match="visible must be the same"):
        turnout.install(BY_NAME["bert"].build(), routers)
    routers[1]["site"] = "ffn"  # nothing of a skipped FFN is seen by others
    turnout.install(BY_NAME["bert"].build(), routers)


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_what_an_encoder_hides_is_no_matter_of_the_decoder(name: str) -> None:
    hidden = {"kind": "gate", "granularity": "token", "visible": False, "stack": "encoder"}
    decoder = {"kind": "gate", "site": "layer", "granularity": "token", "stack": "decoder"}
    turnout.install(BY_NAME[name].build(), [hidden, decoder])
    with pytest.raises(turnout.UserError, match="encoders only"):
        turnout.install(BY_NAME[name].build(), [{**hidden, "stack": "decoder"}])


def test_attention_that_is_asked_for_is_warned_of() -> None:
    model, inputs = turnout.install(BY_NAME["bert"].build(), ["gate"]), BY_NAME["bert"].inputs()
    with torch.no_grad():
        model(**inputs)
        with pytest.warns(UserWarning, match="attention of the rows that it ran"):
            model(**inputs, output_attentions=True)


def test_two_routers_serve_one_model() -> None:
    model = turnout.install(
        BY_NAME["t5"].build(),
        [
            {"kind": "gate", "site": "ffn", "stack": "encoder", "granularity": "token"},
            {"kind": "random-skip", "stack": "decoder", "layers": [1, -1], "rate": 1.0},
        ],
    )
    assert [site.key for site in model.turnout.sites] == [
        *(f"encoder.{n}.ffn" for n in range(3)), "decoder.1.layer", "decoder.2.layer",
    ]  # fmt: skip
    with torch.no_grad(), turnout.trace() as trace:
        model(**BY_NAME["t5"].inputs())
    assert set(trace) == {site.key for site in model.turnout.sites}


def test_routers_follow_the_mode_of_the_model() -> None:
    model = turnout.install(BY_NAME["bert"].build().train(), ["gate"])
    assert model.turnout.training
    assert not model.eval().turnout.training


def test_router_weights_lie_under_one_name_in_full_precision() -> None:
    model = turnout.install(BY_NAME["bert"].build().to(torch.bfloat16), ["gate"])
    own = {k: v for k, v in model.state_dict().items() if k.startswith("turnout.")}
    assert own and all(value.dtype == torch.float32 for value in own.values())
    assert model(**BY_NAME["bert"].inputs()).logits.dtype == torch.bfloat16


def test_tokens_stay_where_a_mask_cannot_remove_them() -> None:
    hides = {"kind": "gate", "granularity": "token", "visible": False}
    host = BY_NAME["bert"].build()
    host.config.is_decoder = True
    with pytest.raises(UserError, match="encoders only"):
        turnout.install(host, [hides])
    host = BY_NAME["bert"].build()
    host.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="attn_implementation='sdpa'"):
        turnout.install(host, [hides])


def test_an_encoder_that_attends_to_the_left_is_a_decoder() -> None:
    """BertLMHeadModel, say, or the decoder of an EncoderDecoderModel."""
    config = BY_NAME["bert"].build().config
    config.is_decoder = True
    model = hf.BertLMHeadModel(config)
    for spec in (
        {"kind": "token-attention"},
        {"kind": "gate", "granularity": "token", "capacity": 1.0},
    ):
        with pytest.raises(UserError, match="encoders"):
            turnout.install(model, [spec])
    with pytest.warns(UserWarning, match="later ones would then decide"):
        turnout.install(model, ["gate"])
    assert {site.stack for site in model.turnout.sites} == {"decoder"}
