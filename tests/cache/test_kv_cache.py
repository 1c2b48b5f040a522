"""The cache as a memory: written by hand, compared with lists of what should be in it.

That its content equals the cache of a fresh prefill is shown with models in
``tests/target/test_trees.py``.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jakiro.cache.kv_cache import KVCache
from jakiro.cache.store import Store
from jakiro.tree.verdict import Verdict

SHAPES = [((2, 3), (2, 3)), ((1, 4), (1, 2)), ((2, 3), (3, 2))]
"""Per layer (heads, dim) of keys and of values: alike, MLA-like, different between layers."""
LAYERS = len(SHAPES)


def entries(numbers: Tensor, layer: int, side: int) -> Tensor:
    """Recognisable states [B, heads, N, dim] of tokens with these ``numbers`` [B, N]."""
    heads, dim = SHAPES[layer][side]
    code = torch.arange(heads * dim).view(heads, 1, dim) / 64 + layer * 1000 + side * 500
    return numbers[:, None, :, None].double() * 10_000 + code


def write(cache: KVCache, rows: slice, numbers: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """One forward of all layers; returns what each layer's attention gets to see."""
    tokens = torch.tensor(numbers)
    cache.aim(rows, tokens.shape[1])
    return [cache.update(entries(tokens, i, 0), entries(tokens, i, 1), i) for i in range(LAYERS)]


def prefill(cache: KVCache, numbers: list[int]) -> int:
    row = cache.admit()
    write(cache, slice(row, row + 1), [numbers])
    cache.advance(row, len(numbers))
    return row


def holds(cache: KVCache, texts: list[list[int]]) -> None:
    assert cache.lengths == [len(text) for text in texts]
    for row, text in enumerate(texts):
        for layer, pair in enumerate(cache.content(row)):
            for side, stored in enumerate(pair):
                assert torch.equal(stored, entries(torch.tensor([text]), layer, side)[0])


def verdict(paths: list[list[int]]) -> Verdict:
    """Paths as a rule gives them."""
    return Verdict(paths, [0] * len(paths))


def test_prefill_of_ragged_rows() -> None:
    cache = KVCache(LAYERS)
    for text in ([1, 2, 3], [4], [5, 6, 7, 8, 9]):
        prefill(cache, text)
    assert cache.num_rows == 3
    holds(cache, [[1, 2, 3], [4], [5, 6, 7, 8, 9]])


def test_attention_sees_the_past_and_the_new() -> None:
    cache = KVCache(LAYERS)
    prefill(cache, [1, 2, 3])
    prefill(cache, [4])
    seen = write(cache, slice(0, 2), [[10, 11], [20, 21]])
    assert not cache.aligned
    for layer, pair in enumerate(seen):
        for side, states in enumerate(pair):
            assert states.shape[2] == 5
            assert torch.equal(
                states[0], entries(torch.tensor([[1, 2, 3, 10, 11]]), layer, side)[0]
            )
            assert torch.equal(
                states[1, :, :3], entries(torch.tensor([[4, 20, 21]]), layer, side)[0]
            )
    holds(cache, [[1, 2, 3], [4]])


@given(st.integers(0, 10_000))
def test_any_history_of_steps(seed: int) -> None:
    """Admissions, trees with random accepted paths, departures and reservations in any order."""
    generator = random.Random(seed)
    cache, texts, fresh = KVCache(LAYERS), [], iter(range(1, 10_000))
    for _ in range(8):
        action = generator.choice(["admit", "step", "step", "step", "keep", "reserve"])
        if action == "admit" or not texts:
            text = [next(fresh) for _ in range(generator.randint(1, 5))]
            prefill(cache, text)
            texts.append(text)
        elif action == "keep":
            rows = generator.sample(range(len(texts)), generator.randint(0, len(texts)))
            cache.keep(rows)
            texts = [texts[row] for row in rows]
        elif action == "reserve":
            cache.reserve(generator.randint(1, 6), generator.randint(1, 40))
        else:
            size = generator.randint(1, 6)
            nodes = [[next(fresh) for _ in range(size)] for _ in texts]
            write(cache, slice(0, len(texts)), nodes)
            paths = [
                [0, *sorted(generator.sample(range(1, size), generator.randint(0, size - 1)))]
                for _ in texts
            ]
            cache.commit(verdict(paths))
            for text, line, path in zip(texts, nodes, paths, strict=True):
                text.extend(line[node] for node in path)
        holds(cache, texts)


def test_overlapping_gather() -> None:
    """Sources and targets overlap and shift by different amounts per row."""
    cache = KVCache(LAYERS)
    prefill(cache, [1])
    prefill(cache, [2, 3])
    write(cache, slice(0, 2), [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
    cache.commit(verdict([[0, 2, 3, 4, 5], [0, 1, 3]]))
    holds(cache, [[1, 10, 12, 13, 14, 15], [2, 3, 20, 21, 23]])


def test_a_contiguous_path_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(LAYERS)
    prefill(cache, [1, 2])
    write(cache, slice(0, 1), [[10, 11, 12]])
    monkeypatch.setattr("jakiro.cache.store.Store.move", lambda *_: pytest.fail("moved"))
    cache.commit(verdict([[0, 1]]))
    holds(cache, [[1, 2, 10, 11]])


def test_growth_by_single_tokens_keeps_content() -> None:
    cache, texts = KVCache(LAYERS), [[1, 2, 3], [4]]
    for text in texts:
        prefill(cache, text)
    for number in range(100, 140):
        write(cache, slice(0, 2), [[number], [number + 50]])
        cache.commit(verdict([[0], [0]]))
        texts[0].append(number)
        texts[1].append(number + 50)
    holds(cache, texts)


def test_a_reserved_cache_never_moves_its_storage() -> None:
    cache = KVCache(LAYERS)
    cache.reserve(2, 20)
    prefill(cache, [1, 2, 3])
    (first, _), *_ = cache.content(0)
    prefill(cache, [4])
    for number in range(10, 20):
        write(cache, slice(0, 2), [[number], [number]])
        cache.commit(verdict([[0], [0]]))
    assert cache.content(0)[0][0].data_ptr() == first.data_ptr()


def test_a_batch_that_is_filled_row_by_row_is_copied_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen rows, each with more room than the one before, and no more rows than there may be."""
    cache, copies, grow = KVCache(LAYERS), [], Store.grow

    def counted(store: Store, rows: int, capacity: int) -> None:
        copies.append(rows)
        grow(store, rows, capacity)

    monkeypatch.setattr("jakiro.cache.store.Store.grow", counted)
    cache.ceiling, cache.row_ceiling = 40, 16
    texts = [[100 * row + place for place in range(1, row + 2)] for row in range(16)]
    for text in texts:
        prefill(cache, text)
        cache.make_room(len(text) + 8)
    holds(cache, texts)
    assert len(copies) <= 11 * len(cache._stores)
    assert max(copies) == 16
    cache.row_ceiling = 3
    prefill(cache, [1, 2])
    assert max(copies) == 17, "who is admitted has a row whatever the ceiling"


@pytest.mark.parametrize(("rows", "capacity"), [(4, 10), (1, 40), (2, 20)])
def test_what_earlier_rows_needed_counts_for_no_limit(rows: int, capacity: int) -> None:
    """Two rows of twenty were there, or of two more; the one that stays keeps its content."""
    cache = KVCache(LAYERS)
    cache.reserve(2, 20)
    prefill(cache, [1, 2, 3])
    prefill(cache, [4, 5])
    before = cache._stores[0].data
    cache.keep([1])
    cache.fit(rows, capacity, 40)
    assert cache.row_ceiling == 40 // max(capacity, cache._capacity)
    assert (cache._stores[0].data is before) == (capacity == 20)
    cache.reserve(rows, capacity)
    assert all(s.data.shape[1] * s.data.shape[3] <= 40 for s in cache._stores)
    holds(cache, [[4, 5]])


def test_an_abandoned_first_forward_is_forgotten() -> None:
    cache = KVCache(LAYERS)
    cache.admit()
    tokens = torch.tensor([[1, 2, 3]])
    cache.aim(slice(0, 1), 3)
    cache.update(entries(tokens, 0, 0), entries(tokens, 0, 1), 0)
    write(cache, slice(0, 1), [[7, 8]])
    cache.advance(0, 2)
    holds(cache, [[7, 8]])


def test_rejected_entries_are_overwritten() -> None:
    cache = KVCache(LAYERS)
    prefill(cache, [1])
    write(cache, slice(0, 1), [[10, 11, 12]])
    cache.commit(verdict([[0]]))
    write(cache, slice(0, 1), [[20]])
    cache.commit(verdict([[0]]))
    holds(cache, [[1, 10, 20]])


def test_the_past_of_a_row_does_not_haunt_the_next() -> None:
    """A NaN behind a mask still spreads through attention, as 0 * NaN: a new row starts clean."""
    cache = KVCache(LAYERS)
    prefill(cache, [1, 2])
    prefill(cache, [3, 4, 5])
    cache.aim(slice(0, 2), 4)
    for layer in range(LAYERS):
        poison = torch.full((2, 4), float("nan"))
        cache.update(entries(poison, layer, 0), entries(poison, layer, 1), layer)
    cache.keep([])
    prefill(cache, [6])
    prefill(cache, [7, 8, 9, 10, 11, 12])
    for pair in write(cache, slice(0, 2), [[20], [21]]):
        assert all(states.isfinite().all() for states in pair)


def test_rows_keep_their_dtype() -> None:
    cache = KVCache(1)
    cache.admit()
    for step in range(2):
        cache.aim(slice(0, 1), 2)
        keys, values = cache.update(
            torch.ones(1, 1, 2, 4, dtype=torch.bfloat16), torch.ones(1, 1, 2, 4), 0
        )
        cache.advance(0, 2)
        assert (keys.dtype, values.dtype) == (torch.bfloat16, torch.float32)
        assert keys.shape == (1, 1, 2 * step + 2, 4)


def test_transformers_asks_for_lengths_and_sizes() -> None:
    cache = KVCache(LAYERS)
    prefill(cache, [1, 2, 3])
    cache.aim(slice(0, 1), 4)
    assert len(cache) == LAYERS
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(4, 0) == (7, 0)
    assert cache.get_max_length() == -1
    assert not cache.is_compileable
