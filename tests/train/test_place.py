"""Whose directory it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from jakiro.errors import CheckpointError, ConfigError
from jakiro.train.place import claimed


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with claimed(out):
        assert out.is_dir()
        with pytest.raises(ConfigError, match=r"another run is writing to .*new/run"), claimed(out):
            pass
    with claimed(out):
        pass


def test_models_that_no_run_has_left_stay(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = r"holds a model that no training has left there \(config\.json\)"
    with pytest.raises(ConfigError, match=message), claimed(tmp_path):
        pass
    # A run was stopped in its first save, or its state was deleted to begin again.
    (tmp_path / "history.jsonl").write_text("")
    with claimed(tmp_path):
        pass


def test_a_place_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="cannot write to"),
        claimed(tmp_path / "file" / "run"),
    ):
        pass


def test_a_place_that_may_not_be_looked_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    message = pytest.raises(CheckpointError, match=r"cannot write to .*Permission denied")
    with message, claimed(tmp_path / "run"):
        pass
