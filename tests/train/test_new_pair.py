"""An encoder-decoder out of two pretrained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from tasks.test_rewriting import RECIPE, save
from typer.testing import CliRunner

from turnout import UserError
from turnout.cli import app
from turnout.predict import predict
from turnout.recipe import load
from turnout.train.new_pair import NewPair, new_pair
from turnout.train.pipeline import train
from turnout.train.saving import load_host

# EncoderDecoderModel says this each time that it computes a loss
pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")


def test_what_was_trained_is_kept_and_the_rest_is_new(tmp_path: Path) -> None:
    tiny.save_host(tmp_path / "bert")
    page = tmp_path / "pair.yaml"
    page.write_text(f"encoder: {tmp_path / 'bert'}\nseed: 3\n")
    out = tmp_path / "pair"
    done = CliRunner().invoke(app, ["new", str(page), "--out", str(out)])
    assert done.exit_code == 0, done.output
    model = load_host(out)
    before = load_host(tmp_path / "bert").state_dict()
    after = model.state_dict()
    for side in ("encoder.", "decoder.bert."):  # a decoder has no pooler
        kept = {name: after[side + name] for name in before if side + name in after}
        assert len(kept) >= len(before) - 2
        assert all(torch.equal(value, before[name]) for name, value in kept.items())
    assert "decoder.bert.encoder.layer.0.crossattention.self.query.weight" in after
    assert model.config.decoder_start_token_id == 2 and model.config.pad_token_id == 0
    again = load_host(new_pair(NewPair(encoder=str(tmp_path / "bert"), seed=3), tmp_path / "two"))
    both = zip(after.values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    with pytest.raises(UserError, match="is there already"):
        new_pair(NewPair(encoder=str(tmp_path / "bert")), out)


def test_a_pair_is_trained_routed_and_writes(tmp_path: Path) -> None:
    recipe = save(tmp_path)
    tiny.save_host(tmp_path / "bert")
    new_pair(NewPair(encoder=str(tmp_path / "bert")), tmp_path / "pair")
    recipe.write_text(RECIPE.replace("model: host", "model: pair"))
    run = train(load(recipe, ["train.max_steps=4"]), tmp_path / "run", say=str, progress=False)
    (tmp_path / "new.txt").write_text("the film was slow\n")
    (line,) = predict(run.path, str(tmp_path / "new.txt"), budget=0.5)
    assert isinstance(json.loads(line)["prediction"], str)


def test_words_must_be_the_same(tmp_path: Path) -> None:
    tiny.save_host(tmp_path / "one")
    tiny.save_host(tmp_path / "two")
    other = tiny.tokenizer()
    other.add_tokens(["more"])
    other.save_pretrained(tmp_path / "two")
    page = NewPair(encoder=str(tmp_path / "one"), decoder=str(tmp_path / "two"))
    with pytest.raises(UserError, match="have other words"):
        new_pair(page, tmp_path / "pair")
    with pytest.raises(UserError, match="no such folder"):
        new_pair(NewPair(encoder=str(tmp_path / "gone")), tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
