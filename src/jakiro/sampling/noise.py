"""Standard Gumbel noise that depends on nothing but (seed, choice index, position, token).

A counter-based generator: the SplitMix64 stream (Steele, Lea and Flood, OOPSLA 2014) whose start
is mixed from the seed, the choice index and the absolute position, read at the token id. All of it
is wrapping int64 arithmetic, so every device and every batch layout sees the same integers, and
any subset of the vocabulary can be evaluated on its own.

52 random bits and a half make a float64 uniform that is exact and never 0 or 1. (With 53 bits the
half no longer fits, and the largest uniform rounds to 1: infinite noise.)
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

NOISE_VERSION = 1
"""Texts sampled with one seed are promised to be equal only within one version."""


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_BITS = 52


def _shift(words: Tensor, by: int) -> Tensor:
    """Logical right shift of a fresh copy; int64 shifts in the sign, which the mask removes."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)


def _finalise(words: Tensor) -> Tensor:
    """The output function of SplitMix64."""
    words = _shift(words, 30).bitwise_xor_(words).mul_(_FIRST)
    words = _shift(words, 27).bitwise_xor_(words).mul_(_SECOND)
    return _shift(words, 31).bitwise_xor_(words)


def _advance(words: Tensor, counters: Tensor) -> Tensor:
    """The number ``counters`` of each stream that starts at ``words``; shapes broadcast."""
    return _finalise(words + (counters + 1) * _GAMMA)


def request_keys(seeds: Tensor, choice_indices: Tensor) -> Tensor:
    """Keys of whole requests: int64 in, int64 out, shapes broadcast."""
    return _advance(_finalise(seeds + _GAMMA), choice_indices)


def position_keys(keys: Tensor, positions: Tensor) -> Tensor:
    """Keys of single positions from the keys of their requests; shapes broadcast."""
    return _advance(keys, positions)


class Purpose(IntEnum):
    """What else a request draws, besides the noise of its choices."""

    DRAFT = 1
    """Which tokens a sampled draft proposes."""
    ACCEPT = 2
    """The coins of a rule that accepts with a probability."""


def purpose_keys(keys: Tensor, purpose: Purpose) -> Tensor:
    """Keys of independent streams of the same requests, from the requests' own ``keys``."""
    # Positions are counted from 0, so no position key is one of these.
    return _advance(keys, torch.full_like(keys, -int(purpose)))


def noise_keys(seeds: Tensor, choice_indices: Tensor, positions: Tensor) -> Tensor:
    """Keys of (seed, choice index, absolute position of the chosen token), all int64."""
    return position_keys(request_keys(seeds, choice_indices), positions)


def noise_bits(keys: Tensor, tokens: Tensor) -> Tensor:
    """64 random bits as int64 [..., K] for position keys [...] and token ids [..., K]."""
    return _advance(keys[..., None], tokens)


def gumbel(keys: Tensor, tokens: Tensor | int) -> Tensor:
    """Standard Gumbel noise [..., K] (float64) for position keys [...] and token ids [..., K]
    (or ``tokens`` = V for all of a vocabulary)."""
    return uniform(keys, tokens).log_().neg_().log_().neg_()


def uniform(keys: Tensor, tokens: Tensor | int) -> Tensor:
    """What ``gumbel`` is made of: uniform numbers between 0 and 1, both excluded (float64)."""
    if isinstance(tokens, int):
        tokens = torch.arange(tokens, device=keys.device)
    bits = _shift(noise_bits(keys, tokens), 64 - _BITS).to(torch.float64)
    return bits.add_(0.5).mul_(2.0**-_BITS)
