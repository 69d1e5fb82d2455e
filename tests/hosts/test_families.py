"""The records that ship, and that a family is one record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers as hf
from hosts_table import HOSTS, make_inputs

import turnout
from turnout.execute import reference_execution
from turnout.hosts import FAMILIES, Family, Stack, leaves, register_family


def test_every_record_is_in_the_table_of_hosts() -> None:
    kinds = {host.config().model_type for host in HOSTS}
    untested = {f.name for f in FAMILIES.values() if not kinds & set(f.model_types)}
    assert not untested, f"add a line to tests/hosts_table.py for {untested}"
    unlisted = kinds - {kind for f in FAMILIES.values() for kind in f.model_types}
    assert not unlisted


def test_two_records_of_a_model_type_refuse_different_configs() -> None:
    kinds = [(kind, family.refuse) for family in FAMILIES.values() for kind in family.model_types]
    assert len(kinds) == len(set(kinds))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(turnout.UserError, match="'bert' exists already"):
        register_family(Family("bert", ("another",), ()))


# Query, key and value are interleaved by head in one matrix, so all of it is kept for every row.
NEOX = Stack(
    name="decoder",
    blocks="layers",
    attention=leaves(visible="attention.query_key_value", delta="attention.dense"),
    ffn=leaves(delta="mlp"),
    hideable=False,
)


@pytest.fixture
def _neox() -> Iterator[None]:
    register_family(Family("gpt-neox", ("gpt_neox",), (NEOX,)))
    yield
    del FAMILIES._entries["gpt-neox"]


@pytest.mark.usefixtures("_neox")
@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn"])
def test_a_family_is_one_record(site: str, granularity: str) -> None:
    model = neox()
    inputs = make_inputs("text")
    with torch.no_grad():
        plain = model(**inputs).logits
        turnout.install(model, [dict(kind="random-skip", site=site, granularity=granularity)])
        model.turnout.seed = 1
        with model.turnout.at(0.5):
            packed = model(**inputs).logits
            with reference_execution():
                reference = model(**inputs).logits
        turnout.uninstall(model)
        assert torch.equal(plain, model(**inputs).logits)
    real = inputs["attention_mask"][:, :, None]
    torch.testing.assert_close(packed * real, reference * real, rtol=1e-4, atol=1e-5)
    assert (packed - plain).abs().max() > 1e-3


def neox() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.GPTNeoXConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    return hf.GPTNeoXForCausalLM(config).eval()


def test_without_its_record_the_family_is_unknown() -> None:
    with pytest.raises(turnout.UserError, match="no host family serves model_type 'gpt_neox'"):
        turnout.install(neox(), ["random-skip"])
