"""How often a token followed the last few, in texts that a user gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
"""Of the laws after the last 1 to 5 tokens, as in the code of arXiv 2405.18400."""


class NGrams:
    """Counts of 2-grams to 6-grams, and the weighted sum of what they say of the next token."""

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._counts: dict[tuple[int, ...], Counter[int]] = {}
        for text in texts:
            self.learn(text)

    def learn(self, ids: Sequence[int]) -> None:
        """Count the n-grams of one more text."""
        for end, token in enumerate(ids):
            for context in _contexts(ids[:end]):
                self._counts.setdefault(context, Counter())[token] += 1

    def law(self, ids: Sequence[int]) -> dict[int, float]:
        """What followed the last tokens of ``ids``, with its probability; these sum up to at most
        ``sum(WEIGHTS)``, and to 0 where the tokens never occurred."""
        law: dict[int, float] = {}
        for weight, context in zip(WEIGHTS, _contexts(ids), strict=False):
            counts = self._counts.get(context)
            if counts is None:
                break  # what is longer is as unknown
            total = counts.total()
            for token, count in counts.items():
                law[token] = law.get(token, 0.0) + weight * count / total
        return law


def _contexts(ids: Sequence[int]) -> list[tuple[int, ...]]:
    """The last 1, 2, .. tokens, as far as there are any."""
    end = len(ids)
    return [tuple(ids[end - size : end]) for size in range(1, min(len(WEIGHTS), end) + 1)]
