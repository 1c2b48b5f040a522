"""Samples on disk and their order: what is kept, what is mapped, how a batch is divided."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jakiro.errors import CheckpointError, DataError
from jakiro.train.data import Records, tokenise
from jakiro.train.samples import Piece, opened, stored
from tests.train.support import VOCABULARY, samples_from, samples_of


class Counted(list[int]):
    """A list of which can be told how many there are."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_an_epoch_holds_every_sample_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 300)
    samples = samples_from([([1] * int(n), [True] * int(n)) for n in lengths])
    indices = np.arange(10, 300)
    batches = samples.epoch(indices, 100, (0, 0))
    assert sorted(np.concatenate(list(batches)).tolist()) == indices.tolist()
    padded = [samples.batch(batch).ids.numel() for batch in batches]
    assert max(padded) <= 100
    assert lengths[indices].sum() / sum(padded) > 0.9
    again, other = (samples.epoch(indices, 100, (0, number)) for number in (0, 1))
    assert np.array_equal(again.order, batches.order)
    assert np.array_equal(again.starts, batches.starts)
    assert not np.array_equal(other.order, batches.order)


def test_a_sample_larger_than_the_budget_is_a_batch_of_its_own() -> None:
    samples = samples_from([([1] * 50, [True] * 50)] * 3)
    batches = samples.epoch(np.arange(3), 20, (0,))
    assert sorted(batch.tolist() for batch in batches) == [[0], [1], [2]]


def test_a_batch_is_padded_on_the_right() -> None:
    samples = samples_from([([5, 6, 7], [False, True, True]), ([8, 9], [True, False])])
    batch = samples.batch([1, 0])
    assert batch.ids.tolist() == [[8, 9, 0], [5, 6, 7]]
    assert batch.carries_loss.tolist() == [[True, False, False], [False, True, True]]
    assert batch.lengths.tolist() == [2, 3]


def test_held_out_samples_are_not_trained_on() -> None:
    samples = samples_of(count=50, length=12)
    training, held_out = samples.split(7, seed=3)
    assert len(held_out) == 7
    assert sorted([*training, *held_out]) == list(range(50))
    assert len(samples.split(1000, seed=3)[1]) == 10
    assert samples.split(7, seed=3)[0].tolist() == training.tolist()


def test_nothing_to_learn_from_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample"):
        stored(list, tmp_path, "empty")
    assert not list(tmp_path.iterdir())


def test_samples_are_tokenised_once_and_others_removed(tmp_path: Path) -> None:
    asked: list[str] = []

    def pieces(*ids: int) -> list[Piece]:
        asked.append("yes")
        return [(ids, [True] * len(ids))]

    first = stored(lambda: pieces(5, 6, 7), tmp_path, "one")
    again = stored(lambda: pieces(8, 8, 8), tmp_path, "one")
    assert len(asked) == 1
    assert again.digest == first.digest
    assert again.batch([0]).ids.tolist() == [[5, 6, 7]]
    other = stored(lambda: pieces(5, 6, 8), tmp_path, "two")
    assert other.digest != first.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples-two.ends",
        "samples-two.tokens",
    ]
    with pytest.raises(CheckpointError, match="samples-one"):
        opened(tmp_path, "one")
    # A copy that was cut off.
    tokens = tmp_path / "samples-two.tokens"
    tokens.write_bytes(tokens.read_bytes()[:8])
    with pytest.raises(CheckpointError, match="2 tokens are not what the ends tell; delete both"):
        opened(tmp_path, "two")


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    kept = {"samples-mine.jsonl", "samples-more"}
    (tmp_path / "samples-mine.jsonl").write_text("{}")
    (tmp_path / "samples-more").mkdir()
    (tmp_path / "samples-old.tokens.tmp").write_text("cut short")
    stored(lambda: iter([([1, 2, 3], [True] * 3)]), tmp_path, "key")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == kept | {"samples-key.tokens", "samples-key.ends"}


def test_a_failure_while_tokenising_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[Piece]:
        yield [1, 2, 3], [True] * 3
        raise DataError("line 2 is bad")

    with pytest.raises(DataError, match="line 2 is bad"):
        stored(pieces, tmp_path, "key")
    assert not list(tmp_path.iterdir())


def test_what_is_in_memory_does_not_grow_with_the_file(tokenizer: Any, tmp_path: Path) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def run(lines: int) -> tuple[int, int]:
        nonlocal most
        most = 0
        path = tmp_path / f"{lines}.jsonl"
        path.write_text((json.dumps({"text": "w1 w2 w3 w4"}) + "\n") * lines)

        def pieces() -> Iterator[Piece]:
            nonlocal most
            for ids, marks in tokenise(Records([path]), tokenizer, 64, VOCABULARY):
                counted = Counted(ids)
                alive.add(counted)
                most = max(most, len(alive))
                yield counted, marks
                del counted

        samples = stored(pieces, tmp_path, str(lines))
        epoch = samples.epoch(np.arange(lines), 64, (0,))
        samples.batch(epoch[0])
        gc.collect()
        # Arrays are one object each, whatever their length.
        return most, len(gc.get_objects())

    run(10)
    (few, objects), (many, more) = run(100), run(3000)
    assert many == few <= 2
    assert more - objects < 200


def test_tokens_are_counted_in_little_memory() -> None:
    size = 1 << 20
    ids = np.arange(size) % 37
    samples = samples_from([(ids, np.ones(size, np.bool_))])
    tracemalloc.start()
    found = samples.counts(40)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == np.bincount(ids, minlength=40).tolist()
    assert most < 4 * size, "more than all of them are on disk"


def test_parts_of_a_batch_are_its_samples(tmp_path: Path) -> None:
    samples = samples_of(count=8, length=16)
    indices = np.array([3, 1, 6, 0, 2])
    parts = samples.parts(indices, 3, slice(None))
    assert np.concatenate([part.indices for part in parts]).tolist() == indices.tolist()
    (second,) = samples.parts(indices, 3, slice(1, None, 3))
    assert second.indices.tolist() == parts[1].indices.tolist()
    *_, last = samples.parts(indices, 6, slice(None))
    assert last.ids.numel() > 0
    assert not last.carries_loss.any()
