"""Texts, what they cost, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf

import turnout
from turnout.errors import UserError
from turnout.execute.mode import evaluating
from turnout.generation.settings import WriteSettings, generation_config, settings_of
from turnout.generation.writer import Writer
from turnout.train import saving

from .writing_models import llama

SEED = WriteSettings(max_new_tokens=6, seed=1)


def test_pieces_make_up_the_text(writer: Writer) -> None:
    pieces: dict[int, str] = {}

    def tell(place: int, piece: str) -> None:
        pieces[place] = pieces.get(place, "") + piece

    found = writer.write(["the film", "a"], SEED, tell, samples=2)
    assert [each.prompt for each in found] == [0, 0, 1, 1]
    assert pieces == {place: each.text for place, each in enumerate(found)}
    assert all(each.tokens == len(each.ids) for each in found)
    again = writer.write(["the film", "a"], SEED, samples=2)
    assert [each.text for each in found] == [each.text for each in again]
    other = writer.write(["the film", "a"], SEED.but(seed=2), samples=2)
    assert [each.text for each in found] != [each.text for each in other]


def test_greedy_alone_equals_greedy_in_a_padded_batch(writer: Writer) -> None:
    settings = SEED.but(greedy=True, max_new_tokens=12)
    prompts = ["the film was a very good story", "a", "Ann met Bob"]
    together = writer.write(prompts, settings)
    for prompt, each in zip(prompts, together, strict=True):
        (alone,) = writer.write([prompt], settings)
        assert (alone.text, alone.stop) == (each.text, each.stop)
        # a layer that runs for another row of a batch lets this one's keys in, too
        assert alone.share == pytest.approx(each.share, rel=0.02)
        assert alone.layers == pytest.approx(each.layers)


def test_share_is_that_of_the_budget_and_of_all_passes(writer: Writer) -> None:
    routing: Any = writer.model.turnout
    before = routing.budget, routing.seed
    # the share by hand: the trace of each pass of a greedy text
    spent = dense = 0.0

    def see(flow: Any) -> None:
        nonlocal spent, dense
        spent += float(turnout.cost.trace_flops(flow.trace))
        dense += float(turnout.cost.trace_dense_flops(flow.trace))

    half = writer.write(["the film"], SEED.but(budget=0.5, greedy=True))[0]
    ids = torch.tensor([writer.encode("the film")])
    routing.seed = 1
    with routing.at(0.5), routing.watched(see):
        writer.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
    routing.seed = before[1]
    assert half.share == pytest.approx(spent / dense) and 0 < half.share < 1
    assert (routing.budget, routing.seed) == before


def test_the_dense_host_has_no_dials(dense: Writer) -> None:
    (found,) = dense.write(["the film"], SEED)
    assert found.share == 1.0 and found.layers == {}
    with pytest.raises(UserError, match="no routers"):
        dense.write(["the film"], SEED.but(budget=0.5))
    with pytest.raises(UserError, match="without noise"):
        dense.write(["the film"], SEED.but(noise=0.5))


def test_trained_noise_is_dialled_where_there_is_some(dense: Writer) -> None:
    plain = dense.write(["the"], SEED.but(greedy=True))
    turnout.install(dense.model, noise=[{"kind": "ffn", "start": 5.0}])
    routing: Any = dense.model.turnout
    seen = []
    noisy = dense.write(
        ["the"], SEED.but(noise=0.25), lambda place, piece: seen.append(routing.noise_scale)
    )
    assert seen and set(seen) == {0.25} and routing.noise_scale == 1.0
    assert noisy[0].share == 1.0 and noisy[0].layers == {}
    still = dense.write(["the"], SEED.but(greedy=True, noise=0.0))
    assert still[0].ids == plain[0].ids
    assert dense.write(["the"], SEED.but(greedy=True, noise=4.0))[0].ids != plain[0].ids


def test_stop_strings_end_a_text_and_are_no_part_of_it(writer: Writer) -> None:
    settings = SEED.but(max_new_tokens=40, greedy=True)
    (whole,) = writer.write(["the film"], settings)
    words = whole.text.split()
    stop = " ".join(words[2:4])
    pieces = []
    (cut,) = writer.write(["the film"], settings.but(stop=(stop,)), lambda i, p: pieces.append(p))
    assert cut.stop == "stop" and cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(pieces) == cut.text and cut.tokens < whole.tokens


def test_an_end_token_ends_a_text(writer: Writer) -> None:
    (whole,) = writer.write(["the film"], SEED.but(greedy=True))
    writer.model.generation_config.eos_token_id = whole.ids[3]
    (cut,) = writer.write(["the film"], SEED.but(greedy=True))
    assert cut.stop == "end" and whole.ids[: cut.tokens] == cut.ids
    assert whole.ids[3] not in cut.ids and whole.stop == "length"


def test_an_interrupt_keeps_what_was_written(writer: Writer) -> None:
    seen = []

    def tell(place: int, piece: str) -> None:
        seen.append(piece)
        if len(seen) == 3:
            writer.stop()

    found = writer.write(["the film", "a"], SEED.but(max_new_tokens=50), tell, batch=1)
    assert len(found) == 1 and found[0].stop == "interrupted"
    assert found[0].text == "".join(seen) and found[0].tokens < 10
    assert writer.write(["a"], SEED)[0].stop == "length"  # an interrupt is over afterwards
    writer.stop()
    assert writer.write(["a"], SEED) == []  # it came between two calls
    writer.stop()
    writer.resume()
    assert writer.write(["a"], SEED)


def test_beams_write_several_texts_of_one_share(writer: Writer) -> None:
    found = writer.write(["the film", "a"], SEED.but(beams=3), samples=2)
    assert len(found) == 4 and all(each.tokens == 6 for each in found)
    assert found[0].share == found[1].share and found[0].text != found[1].text
    with pytest.raises(UserError, match="at most 3"):
        writer.write(["a"], SEED.but(beams=3), samples=4)
    with pytest.raises(UserError, match="greedy"):
        writer.write(["a"], SEED.but(greedy=True), samples=2)


def test_prompts_must_fit(writer: Writer) -> None:
    with pytest.raises(UserError, match="prompt 2 has 71 tokens, but the model reads 64"):
        writer.write(["a", "film " * 70], SEED)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        writer.write([[]], SEED)
    (found,) = writer.write(["film " * 60], SEED)
    assert found.tokens == 3  # 61 of 64 are there already
    assert writer.encode("half \ud800")  # not a character


def test_an_encoder_decoder_answers(tmp_path: Path) -> None:
    config = hf.T5Config(
        vocab_size=len(tiny.WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    model = hf.T5ForConditionalGeneration(config).eval()
    turnout.install(
        model,
        [
            {"kind": "random-skip", "granularity": "token", "stack": "decoder", "rate": 0.5},
            {"kind": "random-skip", "granularity": "token", "stack": "encoder", "rate": 0.5},
        ],
    )
    saving.save(model, tiny.tokenizer(), tmp_path / "t5")
    writer = Writer.open(tmp_path / "t5", "cpu")
    assert writer.encode("the film")[-1] == 3
    found = writer.write(["the film", "a very good story"], SEED.but(budget=0.5), samples=2)
    assert len(found) == 4 and all(0 < each.share < 1 for each in found)
    assert {key.split(".")[0] for key in found[0].layers} == {"encoder", "decoder"}
    assert found[0].layers["encoder.0.layer"] == found[1].layers["encoder.0.layer"]


def test_what_can_be_opened(tmp_path: Path, dense_folder: Path) -> None:
    assert Writer.open(dense_folder, "cpu").context == 64
    with pytest.raises(UserError, match="no such folder"):
        Writer.open(tmp_path / "nothing" / "there")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = hf.BertForMaskedLM(tiny.bert_config())
    saving.save(bert, tiny.tokenizer(), tmp_path / "bert")
    with pytest.raises(UserError, match="an encoder \\(bert\\) does not write"):
        Writer.open(tmp_path / "bert")
    sizes: dict[str, Any] = dict(
        vocab_size=34, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    neox = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes))  # its config says is_decoder: false
    saving.save(neox, tiny.tokenizer(), tmp_path / "neox")
    assert Writer.open(tmp_path / "neox", "cpu").write(["a"], SEED)
    body = llama().model
    body.save_pretrained(tmp_path / "body")
    tiny.tokenizer().save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"lacks 1 tensors .* lm_head"):
        Writer.open(tmp_path / "body")


def test_settings_become_those_of_generate() -> None:
    own = hf.GenerationConfig(temperature=0.6, top_p=0.9, max_length=20)
    plain = generation_config(WriteSettings(max_new_tokens=9), own, room=5, samples=1)
    assert (plain.temperature, plain.top_p, plain.max_new_tokens) == (0.6, 0.9, 5)
    assert plain.do_sample and plain.max_length is None
    other = generation_config(settings_of(temperature=2, min_p=0.1, top_k=0), own, 500, 1)
    assert (other.temperature, other.min_p, other.top_k) == (2.0, 0.1, 0)
    assert not generation_config(settings_of(beams=2), own, 5, 2).do_sample
    for wrong in ({"temperature": 0}, {"top_p": 1.5}, {"budget": 0}, {"beams": "x"}, {"x": 1}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}: found"):
            settings_of(**wrong)


def test_a_model_in_training_is_put_to_use(dense_folder: Path) -> None:
    model, tokenizer = saving.load_host(dense_folder).train(), tiny.tokenizer()
    writer = Writer(model, tokenizer)
    with evaluating(model):
        assert writer.write(["a"], SEED)
