"""``largest`` against a whole sort, ``first_largest`` against ``argmax``."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jakiro.tree.largest import BLOCK, LEAST, first_largest, largest


@given(
    size=st.integers(LEAST - 1, LEAST + 2 * BLOCK),
    count=st.integers(1, 70),
    levels=st.sampled_from([1, 7, 1 << 20]),
    seed=st.integers(0, 1 << 20),
)
def test_finds_what_a_sort_finds(size: int, count: int, levels: int, seed: int) -> None:
    """With few distinct ``levels`` nearly everything ties."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels, (2, 3, size), generator=generator).float()
    values[0, 0, torch.randint(size, (size // 2,), generator=generator)] = -torch.inf
    found = largest(values, count)
    assert torch.equal(found.values, values.sort(-1, descending=True).values[..., :count])
    assert torch.equal(found.values, values.gather(-1, found.indices))
    assert all(len(set(places.tolist())) == count for places in found.indices.flatten(0, 1))


@pytest.mark.parametrize("place", [0, LEAST - 1, LEAST, LEAST + 5])
def test_no_place_is_out_of_sight(place: int) -> None:
    """The first and last of the blocks, and what is behind them."""
    values = torch.zeros(1, LEAST + 6)
    values[0, place] = 1.0
    assert largest(values, 1).indices.tolist() == [[place]]


def test_as_many_as_there_are() -> None:
    values = torch.arange(10.0)
    assert largest(values, 10).indices.tolist() == list(range(9, -1, -1))


@given(
    size=st.integers(1, 12 * BLOCK),
    levels=st.sampled_from([1, 2, 7, 1 << 20]),
    strange=st.sampled_from([0.0, float("nan"), float("inf"), float("-inf")]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1 << 20),
)
def test_the_first_of_many_that_are_equal(
    size: int, levels: int, strange: float, dtype: torch.dtype, seed: int
) -> None:
    """Of a part of a larger tensor, NaN and infinities among its numbers."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(levels, (2, 3, size + 5), generator=generator).to(dtype)
    whole[:, 0, torch.randint(size, (2,), generator=generator)] = strange
    values = whole[:, :, :size]
    with patch("jakiro.tree.largest.MANY", 0):
        assert torch.equal(first_largest(values), values.argmax(-1))
