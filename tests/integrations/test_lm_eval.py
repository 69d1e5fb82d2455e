"""Routed models in lm-eval: its tasks, its command line, its own class."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf

import turnout
from turnout import UserError
from turnout.train.saving import save

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

CHOICE = """\
task: which
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/which.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: right
doc_to_choice: [good, bad, "very slow"]
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved routed model that sheds by chance, and a task beside it."""
    found = tmp_path_factory.mktemp("lm_eval")
    torch.manual_seed(0)
    router = {"kind": "random-skip", "granularity": "token", "site": "ffn"}
    model = turnout.install(hf.LlamaForCausalLM(tiny.llama_config()), router)
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    save(model, tokenizer, found / "model")
    rows = ({"text": f"the {word} film", "right": n % 3} for n, word in enumerate(tiny.FILLER))
    (found / "which.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found / "which.yaml").write_text(CHOICE.replace("FOLDER", str(found)))
    return found


def language_model(folder: Path, **fields: Any) -> Any:
    from turnout.integrations.lm_eval import RoutedLM

    return RoutedLM(str(folder / "model"), device="cpu", **fields)


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)  # type: ignore[arg-type]


PAIRS = [("the film", " was good"), ("a", " story of the actor"), ("", "bad")]


def test_likelihoods_are_those_of_each_text_alone(folder: Path) -> None:
    model = language_model(folder, budget=0.5)
    requests = [instance("loglikelihood", *pair) for pair in PAIRS]
    together = model.loglikelihood(requests, disable_tqdm=True)
    alone = [model.loglikelihood([one], disable_tqdm=True)[0] for one in requests]
    assert [total for total, _ in together] == pytest.approx([total for total, _ in alone])
    assert all(total < 0 for total, _ in together)
    open_ = language_model(folder, budget=1.0).loglikelihood(requests, disable_tqdm=True)
    assert all(abs(a - b) > 1e-4 for (a, _), (b, _) in zip(open_, together, strict=True))


def test_with_everything_on_it_is_what_the_harness_finds(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model = language_model(folder, budget=1.0)
    plain = HFLM(pretrained=model.model, tokenizer=model.tokenizer)  # a routed model, unchanged
    requests = [instance("loglikelihood", *pair) for pair in PAIRS]
    for ours, theirs in zip(
        model.loglikelihood(requests, disable_tqdm=True),
        plain.loglikelihood(requests, disable_tqdm=True),
        strict=True,
    ):
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours[1] == theirs[1]
    long = [instance("loglikelihood_rolling", " ".join(tiny.FILLER * 9)), *requests[:0]]
    rolled = [each.loglikelihood_rolling(long, disable_tqdm=True)[0] for each in (model, plain)]
    assert rolled[0] == pytest.approx(rolled[1], rel=1e-5)
    asked = [instance("generate_until", "the film", {"until": ["[SEP]"], "max_gen_toks": 4})]
    written = [each.generate_until(asked, disable_tqdm=True) for each in (model, plain)]
    assert written[0] == written[1] and len(written[0][0]) > 0


def test_a_text_is_written_the_same_alone_and_among_others(folder: Path) -> None:
    model = language_model(folder, budget=0.5, batch_size=4)
    until = {"until": ["[SEP]"], "max_gen_toks": 5}
    asked = [instance("generate_until", text, until) for text in ("the film", "a very slow story")]
    together = model.generate_until(asked, disable_tqdm=True)
    assert together == [model.generate_until([one], disable_tqdm=True)[0] for one in asked]


def test_a_task_is_run_at_three_budgets(folder: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = []
    for budget in (1.0, 0.6, 0.3):
        results: Any = simple_evaluate(
            model="turnout",
            model_args={"pretrained": str(folder / "model"), "budget": budget},
            device="cpu",
            tasks=["which"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
        totals = [
            [one[0] for one in sample["filtered_resps"]] for sample in results["samples"]["which"]
        ]
        assert 0 <= results["results"]["which"]["acc,none"] <= 1 and len(totals) == 10
        found.append(totals)
    assert found[0] != found[1] != found[2]


@pytest.mark.slow  # importing all of it again takes 20 s
def test_the_command_line_knows_the_model(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "turnout.integrations.lm_eval", "run", "--model", "turnout"]
    command += ["--model_args", f"pretrained={folder / 'model'},budget=0.5"]
    command += ["--tasks", "which", "--include_path", str(folder), "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out"), "--limit", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "which" in done.stdout and list((tmp_path / "out").rglob("results*.json"))


def test_a_plain_model_is_refused(folder: Path) -> None:
    from turnout.integrations.lm_eval import RoutedLM

    with pytest.raises(UserError, match="is not routed"):
        RoutedLM(hf.LlamaForCausalLM(tiny.llama_config()))
    with pytest.raises(UserError, match="budget must be a number from 0 to 1"):
        language_model(folder, budget=2.0)
    with pytest.raises(UserError, match="knows no such type"):
        language_model(folder, dtype="float31")
