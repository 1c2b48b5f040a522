"""Contrastive decoding: what a strong model prefers and a weak one does not (Li et al., arXiv
2210.15097; in the form of O'Brien and Lewis, arXiv 2309.09117)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jakiro.target.definitions.base import Definition, Encode, Redefined, Said, Source
from jakiro.target.definitions.contrast import check_contrast, contrast, plausible
from jakiro.target.target import Target


@dataclass(frozen=True)
class Contrastive(Definition):
    """``alpha``: tokens less than this share of the best one's probability are out. ``beta``: how
    much of the amateur is taken off."""

    alpha: float = 0.1
    beta: float = 0.5

    name = "contrastive"
    needs_amateur = True

    def __post_init__(self) -> None:
        check_contrast(self.alpha, self.beta)

    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        assert amateur is not None
        return Redefined(target, self._join, others=[Source(amateur)])

    def _join(self, said: list[Said]) -> Tensor:
        expert, amateur = (each.logits for each in said)
        return plausible(contrast(expert, amateur, self.beta), expert, self.alpha)
