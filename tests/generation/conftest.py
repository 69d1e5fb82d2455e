"""A writer of a tiny language model, routed and plain."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from turnout.generation.writer import Writer
from turnout.train import saving

from .writing_models import llama, save_routed


@pytest.fixture(scope="session")
def routed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_routed(tmp_path_factory.mktemp("models") / "routed")


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dense"
    saving.save(llama(), tiny.tokenizer(), folder)
    return folder


@pytest.fixture
def writer(routed_folder: Path) -> Writer:
    return Writer.open(routed_folder, "cpu")


@pytest.fixture
def dense(dense_folder: Path) -> Writer:
    return Writer.open(dense_folder, "cpu")
