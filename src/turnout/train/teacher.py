"""What a dense host says of the training rows, kept beside it: every training that starts from a
copy of its folder reads the answers instead of asking again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedModel

from turnout.execute.batches import Collate, Row
from turnout.execute.pool import predict_bulk
from turnout.files import write_bytes

FILE = "teacher_logits.safetensors"


def teacher_logits(
    dense: PreTrainedModel, rows: Sequence[Row], collate: Collate, folder: Path | None = None
) -> list[np.ndarray]:
    """A host's logits for encoded rows, (C,) or (T, C) each, in their order.

    folder: the host's own, where the answers are read if they are of these rows, and written if
    not; None = they are not kept.
    """
    if folder is None:
        return predict_bulk(dense, rows, collate).logits
    asked = _fingerprint(rows)
    logits = _read(folder / FILE, asked)
    if logits is None:
        logits = predict_bulk(dense, rows, collate).logits
        _write(folder / FILE, asked, logits)
    return logits


def _write(path: Path, asked: str, logits: list[np.ndarray]) -> None:
    parts = [np.atleast_2d(row).astype(np.float32) for row in logits]
    tensors = {
        "logits": np.concatenate(parts),
        "lengths": np.array([len(part) for part in parts], dtype=np.int64),
    }
    write_bytes(path, save(tensors, {"rows": asked, "ndim": str(logits[0].ndim)}))


def _read(path: Path, asked: str) -> list[np.ndarray] | None:
    """The answers in a file; None where it is missing, damaged or of other rows."""
    try:
        with safe_open(path, "numpy") as file:
            known = file.metadata() or {}
            if known.get("rows") != asked:
                return None
            flat, lengths = file.get_tensor("logits"), file.get_tensor("lengths")
    except (OSError, SafetensorError):
        return None
    parts = np.split(flat, np.cumsum(lengths)[:-1])
    return [part[0] for part in parts] if known["ndim"] == "1" else parts


def _fingerprint(rows: Sequence[Row]) -> str:
    """The same for the same rows in the same order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
