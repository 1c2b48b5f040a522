"""The few statistics a report needs, each defined once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_PROMPTS = 3
"""From which on an interval says anything: of one it is a point."""
NGRAM = 8
LOOP_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample by its median, its quartiles and a bootstrap 95% interval of the median."""

    median: float
    quartile_low: float
    quartile_high: float
    interval_low: float
    interval_high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], num_resamples: int = 2000) -> Spread | None:
        """None for no values. The resampling is seeded: equal samples give equal intervals."""
        if not values:
            return None
        sample = np.asarray(values, dtype=np.float64)
        drawn = np.random.default_rng(0).choice(sample, (num_resamples, len(sample)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        quartiles = np.quantile(sample, [0.25, 0.5, 0.75])
        return cls(
            median=float(quartiles[1]),
            quartile_low=float(quartiles[0]),
            quartile_high=float(quartiles[2]),
            interval_low=float(low),
            interval_high=float(high),
            count=len(sample),
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two sums over prompts, with its bootstrap 95% interval over prompts."""

    value: float
    interval_low: float
    interval_high: float

    @classmethod
    def of(
        cls, parts: Sequence[float], wholes: Sequence[float], num_resamples: int = 2000
    ) -> Ratio | None:
        """sum(``parts``) / sum(``wholes``), one entry of each per prompt; None where the wholes
        sum to 0. A prompt is drawn with both of its entries, seeded as in ``Spread``; draws whose
        wholes sum to 0 say nothing and are left out."""
        part, whole = (np.asarray(values, dtype=np.float64) for values in (parts, wholes))
        if not whole.sum():
            return None
        drawn = np.random.default_rng(0).integers(0, len(part), (num_resamples, len(part)))
        below = whole[drawn].sum(axis=1)
        ratios = part[drawn].sum(axis=1)[below > 0] / below[below > 0]
        low, high = np.quantile(ratios, [0.025, 0.975])
        return cls(float(part.sum() / whole.sum()), float(low), float(high))

    def overlaps(self, other: Ratio) -> bool:
        """The two intervals share a value."""
        is_below = self.interval_high < other.interval_low
        return not is_below and self.interval_low <= other.interval_high


def repeated_share(token_ids: Sequence[int], size: int = NGRAM) -> float:
    """Share of the ``size``-grams of a text that occurred earlier in it: 1 - distinct / all.

    0 for a text shorter than one such gram.
    """
    grams = [tuple(token_ids[i : i + size]) for i in range(len(token_ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(token_ids: Sequence[int]) -> bool:
    """More than half of the 8-grams are repeats. A drafter guesses such a text for free, so
    reports give τ without it as well."""
    return repeated_share(token_ids) > LOOP_SHARE
