"""A target, a tokenizer and samples small enough to train on in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.target.target import Target
from jakiro.train.samples import Samples
from tests.train.support import samples_of, tiny_target, word_tokenizer


@pytest.fixture(scope="session")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return word_tokenizer()


@pytest.fixture(scope="session")
def samples() -> Samples:
    return samples_of(count=8, length=16)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as a small training; what looks at the curves asks for ``curves``."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("jakiro.train.trainer.draw", lambda records, path: False)


@pytest.fixture
def curves() -> None:
    """The curves of a run are drawn."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"
