"""PEFT's LoRA checkpoints as units."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.files import read_json, write_json
from turnout.objectives import ObjectivesConfig
from turnout.routers.gate import GateConfig
from turnout.train.config import TrainConfig
from turnout.train.fit import freeze
from turnout.train.trainer import RoutedTrainer

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


def test_a_router_may_be_given_as_a_config(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path / "a", 1)
    config = GateConfig(granularity="token")
    model = turnout.install_lora(BY_NAME["bert"].build(), [tmp_path / "a"], config)
    (router,) = model.turnout.all_routers()
    assert (router.config.kind, router.config.granularity) == ("gate", "token")
    assert router.config.site == "adapter"


def test_a_host_of_another_name_is_warned_of(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path / "a", 0)
    config = read_json(tmp_path / "a" / "adapter_config.json")
    write_json(
        tmp_path / "a" / "adapter_config.json", config | {"base_model_name_or_path": "x/one"}
    )
    for name, expected in (("y/one", 0), ("x/two", 1), ("", 0)):
        host = BY_NAME["bert"].build()
        host.name_or_path = name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            turnout.install_lora(host, [tmp_path / "a"], {"kind": "gate"})
        assert sum("was trained on x/one" in str(w.message) for w in caught) == expected


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


def test_what_plain_lora_is_not_is_refused(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path, 0)
    config = read_json(tmp_path / "adapter_config.json")
    for change, message in (
        ({"init_lora_weights": "pissa_niter_16"}, "changed the host's own weights"),
        ({"init_lora_weights": "lora_ga"}, "changed the host's own weights"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is set"),
    ):
        write_json(tmp_path / "adapter_config.json", {**config, **change})
        with pytest.raises(UserError, match=message):
            turnout.install_lora(BY_NAME["bert"].build(), [tmp_path])


def test_cross_attention_is_out_of_reach(tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=2, target_modules=["q", "v"])  # of all attention, as by default
    peft.get_peft_model(BY_NAME["t5"].build(), lora).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which routers do not reach"):
        turnout.install_lora(BY_NAME["t5"].build(), [tmp_path])


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    inputs = BY_NAME["bert"].inputs("none")
    lora = peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["query"])
    model = peft.get_peft_model(BY_NAME["bert"].build(), lora).eval()
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape)
    model.save_pretrained(tmp_path)
    routed = turnout.install_lora(BY_NAME["bert"].build(), [tmp_path])
    with torch.no_grad():
        found, wanted = routed(**inputs)["logits"], model(**inputs)["logits"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_router_over_checkpoints_learns_and_they_stay(tmp_path: Path) -> None:
    """One checkpoint gives the wanted answer, the other does not: the gate finds out which."""
    inputs = {key: value.repeat(8, 1) for key, value in BY_NAME["bert"].inputs("none").items()}
    for seed in (1, 2):
        checkpoint("bert", tmp_path / str(seed), seed)
    with torch.no_grad():
        right = turnout.install_lora(BY_NAME["bert"].build(), [tmp_path / "1"], {"kind": "cluster"})
        wanted = right(**inputs)["logits"].softmax(-1)
    model = turnout.install_lora(
        BY_NAME["bert"].build(),
        [tmp_path / "1", tmp_path / "2"],
        {"kind": "gate", "keep": "top-k", "top": 1, "modulate": True},
    )
    freeze(model, "units")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(wanted)

        def __getitem__(self, place: int) -> dict[str, Any]:
            row = {key: value[place] for key, value in inputs.items()}
            return {**row, "labels": wanted[place].argmax(), "teacher_logits": wanted[place].log()}

    def distance() -> float:
        with torch.no_grad():
            found = model.eval()(**inputs)["logits"].log_softmax(-1)
        return float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean"))

    first = distance()
    trainer = RoutedTrainer(
        model=model,
        args=hf.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=80, learning_rate=0.05, report_to="none",
            per_device_train_batch_size=8, save_strategy="no", disable_tqdm=True, use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=Rows(),
        weights=ObjectivesConfig(task=0.0, distill=1.0, budget=0.0),
        train_config=TrainConfig(router_learning_rate=0.05),
    )  # fmt: skip
    trainer.train()
    assert distance() < 0.8 * first
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert changed and all(name.startswith("turnout.routers.") for name in changed)
