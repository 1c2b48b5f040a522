"""Memories on disk: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jakiro.drafters.suffix_automaton import CorpusAutomaton
from jakiro.errors import CheckpointError
from jakiro.hub import memory


class Other(CorpusAutomaton):
    kind = "something else"


def test_a_memory_comes_back(tmp_path: Path) -> None:
    corpus = CorpusAutomaton.of([[1, 2, 3, 1, 2], [4, 1]])
    memory.save(corpus, tmp_path / "new" / "corpus")
    found = memory.load(CorpusAutomaton, tmp_path / "new" / "corpus")
    for name, array in corpus.arrays().items():
        assert np.array_equal(found.arrays()[name], array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["corpus"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    memory.save(CorpusAutomaton.of([[1, 2]]), path)
    before = path.read_bytes()
    (tmp_path / "corpus.tmp").mkdir()  # nothing can be written beside its place
    with pytest.raises(CheckpointError, match="cannot save"):
        memory.save(CorpusAutomaton.of([[3, 4, 5]]), path)
    assert path.read_bytes() == before


def test_strange_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    with pytest.raises(CheckpointError, match=r"cannot read .*corpus"):
        memory.load(CorpusAutomaton, path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot read"):
        memory.load(CorpusAutomaton, path)
    memory.save(Other.of([[1]]), path)
    with pytest.raises(CheckpointError, match="holds 'something else'"):
        memory.load(CorpusAutomaton, path)
