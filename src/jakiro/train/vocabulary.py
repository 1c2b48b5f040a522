"""Which tokens a restricted draft head scores (FR-Spec, arXiv 2502.14856)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from jakiro.errors import ConfigError


def frequent_tokens(counts: Tensor, size: int, always: Iterable[int]) -> Tensor:
    """The ``size`` most frequent ids, ascending [size] int64, from ``counts`` [V] by id; ties go to
    the smaller id. The ids ``always`` are among them: what ends a text, or frames a turn, is worth
    drafting however seldom it is seen. Raises ``ConfigError`` if they alone are too many."""
    kept = sorted({token for token in always if 0 <= token < len(counts)})
    if size < len(kept):
        raise ConfigError(
            f"a draft vocabulary of {size} tokens cannot hold the {len(kept)} special tokens of "
            f"the tokenizer; allow at least {len(kept)}"
        )
    ranked = counts.clone()
    ranked[kept] = counts.max() + 1
    return ranked.sort(descending=True, stable=True).indices[:size].sort().values
