"""Decoding by contrasting layers: by how much the last layer prefers a token to an early one, which
is chosen at every position (Chuang et al., DoLa, arXiv 2309.03883)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.target.definitions.base import Definition, Encode, Redefined, Said
from jakiro.target.definitions.contrast import check_contrast, plausible
from jakiro.target.target import Target

_MOST = 20
"""Layers that ``low`` and ``high`` look at in a model of more than twice as many."""


@dataclass(frozen=True)
class DoLa(Definition):
    """``layers``: the candidates, ``low`` or ``high`` (every second layer of that half), or their
    numbers, ``2+4+6``; layer i is the stream that enters block i. ``alpha``: tokens less than this
    share of the best one's probability are out."""

    layers: str = "low"
    alpha: float = 0.1

    name = "dola"

    def __post_init__(self) -> None:
        check_contrast(self.alpha)

    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        return Redefined(target, self._join, _candidates(self.layers, target))

    def _join(self, said: list[Said]) -> Tensor:
        (own,) = said
        final = own.logits.log_softmax(-1)
        early = torch.stack([logits.log_softmax(-1) for logits in own.early])
        farthest = divergence(final, early).argmax(0)
        index = farthest[None, ..., None].expand(1, *final.shape)
        return plausible(final - early.gather(0, index)[0], final, self.alpha)


def divergence(one: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence [K, ..] in nats, of log-probabilities [.., V] and [K, .., V]."""
    middle = torch.logaddexp(others, one) - math.log(2)
    own = (one.exp() * (one - middle)).nan_to_num(0.0)  # 0 log 0
    theirs = (others.exp() * (others - middle)).nan_to_num(0.0)
    return (own + theirs).sum(-1) / 2


def _candidates(text: str, target: Target) -> list[int]:
    """The numbers of the layers that ``text`` names; ``ConfigError``."""
    last = target.num_layers
    # With tied embeddings the head on the input embedding only finds the token it is.
    first = 2 if target.config.tie_word_embeddings else 0
    halves = {
        "low": range(first, min(last // 2, _MOST), 2),
        "high": range(max(last // 2, last - _MOST), last, 2),
    }
    try:
        chosen = list(halves.get(text) or map(int, text.split("+")))
    except ValueError:
        chosen = []
    if not chosen or not set(chosen) <= set(range(last)):
        raise ConfigError(
            f"layers must be low, high or numbers from 0 to {last - 1} like 2+4 for a model of "
            f"{last} layers, got {text!r}" + (", which are none here" if text in halves else "")
        )
    return chosen
