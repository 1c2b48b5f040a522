"""The record of a run survives what a kill leaves of its last line, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from jakiro.errors import CheckpointError
from jakiro.train.history import History

LINES = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


@pytest.mark.parametrize("rest", [b"", b'{"step": 3, "lo', b'{"step": 3, "lo\n', b"\0\0\0", b"3\n"])
def test_half_a_last_line_is_left_out(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(LINES + rest)
    history = History(path)
    assert [record["step"] for record in history.read()] == [1, 2]
    history.keep(1)
    history.add({"step": 2, "loss": 1.5})
    assert [record["loss"] for record in history.read()] == [2.0, 1.5]


@pytest.mark.parametrize("line", [b'{"step": 3, "lo', b"\xff", b'{"loss": 1.0}', b"[]"])
def test_damage_elsewhere_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(line + b"\n" + LINES)
    with pytest.raises(CheckpointError, match=r"history\.jsonl, line 1 is no record of a step"):
        History(path).keep(1)
