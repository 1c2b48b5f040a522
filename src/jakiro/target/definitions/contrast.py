"""What definitions by contrast have in common: the tokens that are plausible at all, and by how
much an expert prefers each of them to an amateur."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jakiro.errors import ConfigError


def check_contrast(alpha: float, beta: float | None = None) -> None:
    """Raise ``ConfigError`` unless ``alpha`` can be a share and ``beta`` a strength."""
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha must be from 0 (every token may be said) to 1 (the best alone), got {alpha}"
        )
    if beta is not None and not 0 <= beta < math.inf:
        raise ConfigError(f"beta must be a number from 0 (no contrast), got {beta}")


def contrast(expert: Tensor, amateur: Tensor, beta: float) -> Tensor:
    """``(1 + beta) expert - beta amateur`` of logits [.., V]."""
    return (1 + beta) * expert - beta * amateur


def plausible(logits: Tensor, expert: Tensor, alpha: float) -> Tensor:
    """``logits`` [.., V], ``-inf`` for tokens less than ``alpha`` times as probable to the expert
    as its best (Li et al., arXiv 2210.15097)."""
    if not alpha:
        return logits
    least = expert.amax(-1, keepdim=True) + math.log(alpha)
    return logits.masked_fill(expert < least, -torch.inf)
