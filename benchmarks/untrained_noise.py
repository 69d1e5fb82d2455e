"""Noise whose size is measured on a text, and that has learned nothing."""

from __future__ import annotations

from typing import Any

import torch

import turnout

TEXT = "The quick answer to a question is often another question, asked more plainly by a friend."


def add_noise(model: Any, tokenizer: Any, noise: dict[str, Any]) -> None:
    """Install noise as large, beside what it is added to, as its config says."""
    turnout.install(model, noise=[noise])
    turnout.size_noise(model, [{"input_ids": tokenizer(TEXT)["input_ids"]}], alike)


def alike(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of rows of one length."""
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}
