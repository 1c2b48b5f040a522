from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jakiro.bench.statistics import Ratio, Spread, loops, repeated_share


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


def counts() -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=12)


@given(counts())
def test_a_ratio_resamples_prompts_whole(pairs: list[tuple[int, int]]) -> None:
    """Against a scalar bootstrap: the same draws, one sum at a time, quantiles by interpolation."""
    parts, wholes = zip(*pairs, strict=True)
    found = Ratio.of(parts, wholes, num_resamples=50)
    if sum(wholes) == 0:
        assert found is None
        return
    assert found is not None
    drawn = np.random.default_rng(0).integers(0, len(pairs), (50, len(pairs))).tolist()
    ratios = []
    for draw in drawn:
        below = sum(pairs[prompt][1] for prompt in draw)
        if below:
            ratios.append(sum(pairs[prompt][0] for prompt in draw) / below)
    ratios.sort()
    assert found.value == pytest.approx(sum(parts) / sum(wholes))
    assert found.interval_low == pytest.approx(interpolated(ratios, 0.025))
    assert found.interval_high == pytest.approx(interpolated(ratios, 0.975))


def interpolated(ordered: list[float], share: float) -> float:
    """The quantile of sorted values, between its two neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_overlap() -> None:
    low, high = Ratio(1.0, 0.5, 1.5), Ratio(2.0, 1.6, 2.5)
    assert not low.overlaps(high)
    assert not high.overlaps(low)
    assert low.overlaps(Ratio(2.0, 1.5, 2.5))
    assert Ratio(1.0, 0.0, 9.0).overlaps(low)
