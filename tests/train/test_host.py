"""Hosts by folder: heads, tokenizers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from turnout import UserError
from turnout.tasks import ClassificationConfig, ClassificationTask, NERConfig, NERTask
from turnout.train.host import (
    check_length,
    host_labels,
    locate,
    open_host,
    open_tokenizer,
    runs_together,
)

TAGS = ["O", "B-PER", "I-PER"]


def reviews(labels: list[str] | None = None, max_length: int = 16) -> ClassificationTask:
    config = ClassificationConfig(train="-", max_length=max_length)
    return ClassificationTask(config, labels or ["bad", "fine", "good"])


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return str(tiny.save_host(tmp_path / "bert"))


def test_a_head_for_the_labels(bert: str) -> None:
    model, tokenizer = open_host(bert, reviews())
    assert model.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert model.config.label2id == {"bad": 0, "fine": 1, "good": 2}
    assert model.classifier.out_features == 3
    assert model.dtype == torch.float32
    assert tokenizer.pad_token == "[PAD]"
    tagger, _ = open_host(bert, NERTask(NERConfig(train="-", max_length=16), TAGS))
    assert type(tagger).__name__ == "BertForTokenClassification"


def test_a_head_of_other_labels_is_replaced_or_refused(tmp_path: Path, bert: str) -> None:
    model, tokenizer = open_host(bert, reviews(["no", "yes"]))
    model.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    two = str(tmp_path / "two")
    assert host_labels(two) == ["no", "yes"]
    assert open_host(two, reviews())[0].classifier.out_features == 3
    kept, _ = open_host(two, reviews(["no", "yes"]), new_head=False)
    assert torch.equal(kept.classifier.weight, model.classifier.weight)
    with pytest.raises(UserError, match=r"train.epochs: found 0, but .* has no head"):
        open_host(two, reviews(), new_head=False)


def byte_level(folder: Path) -> Path:
    """A byte-level tokenizer with no padding token, as decoders have, beside a tiny GPT-2."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet()})
    core = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "<end>"])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"eos_token": "<end>", "padding_side": "left"}
    hf.PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    config = hf.GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=24)
    hf.GPT2Model(config).save_pretrained(folder)
    return folder


def test_decoders_pad_on_the_right_with_their_end(tmp_path: Path) -> None:
    model, tokenizer = open_host(str(byte_level(tmp_path / "gpt2")), reviews())
    assert tokenizer.pad_token == "<end>" and tokenizer.padding_side == "right"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 256
    batch = tokenizer(["ab", "abcd"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 3)
    with pytest.raises(UserError, match=r"max_length: found 25; .*gpt2.* at most 24 tokens"):
        open_host(str(tmp_path / "gpt2"), reviews(max_length=25))


def test_words_get_a_space_before_them_where_bytes_are_read(tmp_path: Path, bert: str) -> None:
    folder = str(byte_level(tmp_path / "gpt2"))
    apart = open_tokenizer(folder, words=True)(["ab", "c"], is_split_into_words=True)
    assert apart.tokens()[0] == apart.tokens()[3] == "Ġ"
    open_tokenizer(folder, words=True).save_pretrained(tmp_path / "again")
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(["ab"], is_split_into_words=True).tokens()[0] == "Ġ"
    assert open_tokenizer(folder)("ab").tokens() == ["a", "b"]
    assert open_tokenizer(bert, words=True)("fine film").tokens()[1:3] == ["fine", "film"]


def test_words_get_a_space_before_them_where_spaces_are_marked(tmp_path: Path, bert: str) -> None:
    """As Gemma's tokenizer reads: a space is a mark of its own, and words given apart have none."""
    words = ["▁red", "▁blue", "red", "blue", "<pad>", "<s>", "▁"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made = hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<s>")
    folder = str(tiny.save_host(tmp_path / "marked"))
    made.save_pretrained(folder)
    assert runs_together(open_tokenizer(folder))
    tokenizer = open_tokenizer(folder, words=True)
    ids = tokenizer(["red", "blue"], is_split_into_words=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁red", "▁blue"]
    assert not runs_together(tokenizer) and not runs_together(open_tokenizer(bert))
    tokenizer.save_pretrained(tmp_path / "again")
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(["red", "blue"], is_split_into_words=True)["input_ids"] == ids
    assert again.padding_side == "right"


def test_roberta_counts_positions_from_its_padding() -> None:
    config = hf.RobertaConfig(max_position_embeddings=20, pad_token_id=1)
    check_length(config, 18)
    with pytest.raises(UserError, match="at most 18"):
        check_length(config, 19)
    check_length(hf.T5Config(), 100_000)


def test_what_is_not_there(tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    cases: dict[str, str] = {
        str(tmp_path / "bret"): r"no such folder; did you mean .*bert",
        str(tmp_path / "empty"): r"holds no config.json",
        f"{bert}/config.json": r"is a file; name the folder",
        "./bert": r"no such folder",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            locate(name)
    assert locate("owner/name") == "owner/name"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'owner/name' is neither a folder nor a model on the Hub"):
        open_host("owner/name", reviews())


def damage(folder: str, change: Any) -> None:
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_checkpoints_that_do_not_fit(tmp_path: Path, bert: str) -> None:
    whole = (Path(bert) / "model.safetensors").read_bytes()
    damage(bert, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(UserError, match=r"lacks 1 tensors .* bert.encoder.layer.1.output.dense"):
        open_host(bert, reviews())
    (Path(bert) / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read .*cut short"):
        open_host(bert, reviews())
    (Path(bert) / "model.safetensors").write_bytes(whole)
    (Path(bert) / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match=r"cannot be loaded from .*nothing"):
        open_host(bert, reviews())


def test_a_family_without_such_a_head(tmp_path: Path) -> None:
    config = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "vit")
    tiny.tokenizer().save_pretrained(tmp_path / "vit")
    damage_free = {"x": torch.zeros(1)}
    save_file(damage_free, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded from"):
        open_host(str(tmp_path / "vit"), reviews())
