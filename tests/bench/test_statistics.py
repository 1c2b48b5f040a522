from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jakiro.bench.statistics import Spread, loops, repeated_share


def test_a_text_without_repeats() -> None:
    assert repeated_share(range(50)) == 0


def test_the_share_counts_repeats_of_eight_tokens() -> None:
    """16 tokens hold nine 8-grams; in a cycle of 4 only four of them are distinct."""
    assert repeated_share([1, 2, 3, 4] * 4) == pytest.approx(5 / 9)


def test_short_texts_repeat_nothing() -> None:
    assert repeated_share([7] * 7) == 0
    assert repeated_share([]) == 0


def test_a_loop_is_more_than_half() -> None:
    """A cycle of length c in n tokens has n - 7 grams, c of them new."""
    half = [1, 2, 3, 4, 5] * 10
    assert not loops([*half[:17]])  # 10 grams, 5 repeats: exactly half
    assert loops([*half[:18]])  # 11 grams, 6 repeats


def test_spread_of_known_values() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread is not None
    assert (spread.quartile_low, spread.median, spread.quartile_high) == (2, 3, 4)
    assert spread.count == 5
    assert spread.interval_low < 3 < spread.interval_high


def test_spread_of_nothing() -> None:
    assert Spread.of([]) is None


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_the_interval_lies_within_the_sample_and_repeats(values: list[float]) -> None:
    spread = Spread.of(values, num_resamples=200)
    assert spread is not None
    assert min(values) <= spread.interval_low <= spread.interval_high <= max(values)
    assert Spread.of(values, num_resamples=200) == spread


def test_the_interval_narrows_with_the_sample() -> None:
    few, many = Spread.of([1.0, 2.0, 3.0] * 2), Spread.of([1.0, 2.0, 3.0] * 60)
    assert few is not None
    assert many is not None
    assert many.interval_high - many.interval_low < few.interval_high - few.interval_low
