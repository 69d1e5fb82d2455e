"""PEFT's LoRA checkpoints as units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.files import read_json, write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn"],
}


def checkpoint(name: str, folder: Path, seed: int, rank: int = 3) -> Any:
    """A LoRA checkpoint with weights that matter; returns the model with the adapter on."""
    config = peft.LoraConfig(r=rank, lora_alpha=5, target_modules=TARGETS[name])
    model = peft.get_peft_model(BY_NAME[name].build(), config).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_each_unit_is_its_checkpoint(name: str, tmp_path: Path) -> None:
    inputs = BY_NAME[name].inputs("none")
    folders = [tmp_path / "a", tmp_path / "b"]
    with torch.no_grad():
        expected = [
            checkpoint(name, folder, seed, rank)(**inputs)["logits"]
            for folder, seed, rank in zip(folders, (1, 2), (3, 2), strict=True)
        ]
        model = turnout.install_lora(BY_NAME[name].build(), folders, {"kind": "cluster"})
        (router,) = model.turnout.all_routers()
        for unit, wanted in enumerate(expected):
            router.weight_BU = lambda pooled, u=unit: torch.eye(2)[u].expand(len(pooled), 2)
            found = model(**inputs)["logits"]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_router_over_checkpoints_is_saved_with_them(tmp_path: Path) -> None:
    inputs = BY_NAME["bert"].inputs()
    for seed in (1, 2):
        checkpoint("bert", tmp_path / str(seed), seed)
    model = turnout.install_lora(
        BY_NAME["bert"].build(),
        [tmp_path / "1", tmp_path / "2"],
        {"kind": "gate", "modulate": True},
    )
    with torch.no_grad():
        before = model(**inputs)["logits"]
        model.save_pretrained(tmp_path / "routed")
        again = turnout.load(tmp_path / "routed")
        assert torch.equal(again(**inputs)["logits"], before)


def test_wrong_checkpoints_are_named(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path / "bert", 0)
    bert, llama = BY_NAME["bert"].build(), BY_NAME["llama"].build()
    with pytest.raises(UserError, match="trained for another host"):
        turnout.install_lora(llama, [tmp_path / "bert"])
    with pytest.raises(UserError, match=r"no adapter_config.json here"):
        turnout.install_lora(bert, [tmp_path])
    config = read_json(tmp_path / "bert" / "adapter_config.json")
    for field, value, message in (
        ("peft_type", "PREFIX_TUNING", "only LORA"),
        ("use_dora", True, "use_dora is set"),
        ("bias", "all", "trained biases"),
    ):
        write_json(tmp_path / "bert" / "adapter_config.json", {**config, field: value})
        with pytest.raises(UserError, match=message):
            turnout.install_lora(bert, [tmp_path / "bert"])
    whole = dict(config)
    del whole["lora_alpha"]
    for broken, message in ((whole, "lora_alpha is missing"), ([1], "no page of fields")):
        write_json(tmp_path / "bert" / "adapter_config.json", broken)
        with pytest.raises(UserError, match=message):
            turnout.install_lora(bert, [tmp_path / "bert"])
    write_json(tmp_path / "bert" / "adapter_config.json", config)
    with pytest.raises(UserError, match="units at site adapter, got site: 'ffn'"):
        turnout.install_lora(bert, [tmp_path / "bert"], {"kind": "gate", "site": "ffn"})
    file = tmp_path / "bert" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        turnout.install_lora(bert, [tmp_path / "bert"])
    assert not hasattr(bert, "turnout") and not hasattr(llama, "turnout")


def test_a_head_that_was_trained_with_a_checkpoint_is_not_lost(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    trained: Any = peft.get_peft_model(BY_NAME["bert"].build(), config)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter)
    trained.save_pretrained(tmp_path)
    inputs = BY_NAME["bert"].inputs()
    model = BY_NAME["bert"].build()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"was trained with classifier.*as head=0"):
        turnout.install_lora(model, [tmp_path])
    with pytest.raises(UserError, match="head 3: there are 1 checkpoints"):
        turnout.install_lora(model, [tmp_path], head=3)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    turnout.install_lora(model, [tmp_path], {"kind": "cluster"}, head=0)
    with torch.no_grad():
        expected = trained.eval()(**inputs)["logits"]
        torch.testing.assert_close(model(**inputs)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_a_refusal_leaves_the_head_as_it_was(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    trained: Any = peft.get_peft_model(BY_NAME["bert"].build(), config)
    trained.base_model.model.classifier.modules_to_save["default"].weight.data.fill_(7.0)
    trained.save_pretrained(tmp_path)
    model = BY_NAME["bert"].build()
    before = model.classifier.weight.clone()
    with pytest.raises(UserError, match="leave out hold_first"):
        turnout.install_lora(model, [tmp_path], {"kind": "gate", "hold_first": 1}, head=0)
    assert torch.equal(model.classifier.weight, before)


def test_a_checkpoint_of_the_bare_body_fits_the_host_with_a_head(tmp_path: Path) -> None:
    host, inputs = BY_NAME["bert"].build(), BY_NAME["bert"].inputs("none")
    config = peft.LoraConfig(r=2, target_modules=TARGETS["bert"])
    body: Any = peft.get_peft_model(BY_NAME["bert"].build().bert, config).eval()
    for key, parameter in body.named_parameters():
        if "lora_" in key:
            parameter.data = 0.3 * torch.randn_like(parameter)
    body.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = host.classifier(body(**inputs)["pooler_output"])
        model = turnout.install_lora(host, [tmp_path], {"kind": "cluster"})
        found = model(**inputs)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_checkpoints_of_blocks_that_are_not_routed_are_refused(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path, 1)
    model = BY_NAME["bert"].build()
    with pytest.raises(UserError, match=r"adapt block 0 of .*leave out hold_first"):
        turnout.install_lora(model, [tmp_path], {"kind": "gate", "hold_first": 1})
    assert not hasattr(model, "turnout")
