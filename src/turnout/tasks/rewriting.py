"""One text out of another: translation (BLEU) or a summary (ROUGE), written by a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from turnout.errors import UserError
from turnout.tasks.base import IGNORED, Collator, check_tokenizer, map_batches, plain
from turnout.tasks.reading import TextConfig, TextTask
from turnout.units.task_heads import HeadConfig

BLEU_COUNTS = 10  # length of answer and reference; n-grams right and all, for 1 to 4
ROUGES = ("rougeL", "rouge1", "rouge2")


class RewritingConfig(TextConfig):
    """`label` is the column of the text to write. `metric`: BLEU, as sacreBLEU counts it, or the
    mean F-measure of ROUGE-L (Lin 2004; the report has ROUGE-1 and 2 too), not stemmed. `prefix` is
    put before each text. `max_target`: tokens of an answer. `beams`: of the search; 1 is greedy."""

    kind: Literal["rewriting"] = "rewriting"
    label: str = "target"
    metric: Literal["bleu", "rouge"] = "bleu"
    prefix: str = ""
    max_target: int = Field(64, ge=2)
    beams: int = Field(1, ge=1)


class RewritingTask(TextTask[RewritingConfig]):
    """For encoder-decoders. `labels` of a row are the tokens of its target."""

    headline = "bleu"
    model_class = AutoModelForSeq2SeqLM
    generates: ClassVar[bool] = True

    def __init__(self, config: RewritingConfig, labels: Any = None):
        super().__init__(config, labels)
        self.headline = "bleu" if config.metric == "bleu" else "rouge_l"  # type: ignore[misc]

    @property
    def generation(self) -> dict[str, Any]:
        """Options of ``generate``."""
        config = self.config
        return {"max_new_tokens": config.max_target, "num_beams": config.beams, "do_sample": False}

    @property
    def head(self) -> HeadConfig:
        raise UserError("a task that writes text needs a decoder: it has no head beside others")

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        table, name = self._table(source, split), self.config.label
        for row, value in enumerate(table.columns[name]):
            if not isinstance(value, str):
                raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")
        return table.dataset()

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """See Task.encode."""
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        self._tokenizer = tokenizer  # answers are read with it
        labelled = config.label in dataset.column_names

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            rows = zip(*(columns[name] for name in config.text_columns), strict=True)
            texts = [config.prefix + " ".join(row) for row in rows]
            out = dict(tokenizer(texts, truncation=True, max_length=config.max_length))
            if labelled:
                targets = columns[config.label]
                written = tokenizer(
                    text_target=targets, truncation=True, max_length=config.max_target
                )
                out["labels"] = written["input_ids"]
            return out

        return map_batches(dataset, batch)

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED))

    def references(self, dataset: datasets.Dataset) -> list[str]:
        """The targets."""
        return list(dataset[self.config.label])

    def predictions(self, logits: Any, labels: Any = None) -> list[str]:
        """Texts, from the ids of each answer."""
        return [text.strip() for text in self._decoded(logits)]

    def _decoded(self, ids: Any) -> list[str]:
        return self._tokenizer.batch_decode(
            [[int(token) for token in row if token >= 0] for row in ids], skip_special_tokens=True
        )

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 10): what BLEU is counted from; (examples, 4) of ROUGE: F-measures of L, 1
        and 2, then 1."""
        if self.config.metric == "rouge":
            scorer: Any = _rouge()
            pairs = zip(predictions, references, strict=True)
            each = [scorer.score(gold, found) for found, gold in pairs]
            rows = [[*(one[name].fmeasure for name in ROUGES), 1.0] for one in each]
            return np.array(rows, dtype=np.float64).reshape(-1, len(ROUGES) + 1)
        bleu: Any = _bleu()
        rows = bleu._extract_corpus_statistics(list(predictions), [list(references)])
        return np.array(rows, dtype=np.float64).reshape(-1, BLEU_COUNTS)

    def score(self, total: np.ndarray) -> float:
        """BLEU of the corpus, or mean ROUGE-L, 0 to 1."""
        if self.config.metric == "rouge":
            return float(total[0] / total[-1])
        bleu: Any = _bleu()
        found = bleu._compute_score_from_stats([int(value) for value in total])
        return min(1.0, float(found.score) / 100)  # rounding

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """The score and how it was counted (sacreBLEU's signature), length of answers by that of
        references; or ROUGE-L, 1 and 2."""
        total = self.counts(predictions, references).sum(0)
        found: dict[str, Any] = {self.headline: self.score(total)}
        if self.config.metric == "rouge":
            found["rouge_1"], found["rouge_2"] = total[1:3] / total[-1]
        if self.config.metric == "bleu":
            bleu: Any = _bleu()
            whole = bleu.corpus_score(list(predictions), [list(references)])
            found["signature"] = str(bleu.get_signature())
            found["length_ratio"] = whole.sys_len / max(1, whole.ref_len)
        return plain(found)

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction`, a text."""
        return {**record, "prediction": prediction}

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: an answer is a text."""
        return None


def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("metric: bleu needs sacreBLEU: pip install 'turnout[text]'") from None
    return BLEU()


def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("metric: rouge needs rouge-score: pip install 'turnout[text]'") from None
    return RougeScorer(list(ROUGES), use_stemmer=False)
