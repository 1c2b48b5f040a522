"""Self-contrast of a mixture of experts: what it prefers to itself with fewer experts per token
(Shi et al., SCMoE, arXiv 2405.14507)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jakiro.target.definitions.base import Definition, Encode, Redefined, Said, Source
from jakiro.target.definitions.contrast import check_contrast, contrast, plausible
from jakiro.target.routing import with_experts
from jakiro.target.target import Target


@dataclass(frozen=True)
class SelfContrast(Definition):
    """``weak``: experts per token of the amateur. ``alpha`` and ``beta`` as in any contrast."""

    weak: int = 1
    alpha: float = 0.1
    beta: float = 0.5

    name = "scmoe"

    def __post_init__(self) -> None:
        check_contrast(self.alpha, self.beta)

    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        return Redefined(target, self._join, others=[Source(with_experts(target, self.weak))])

    def _join(self, said: list[Said]) -> Tensor:
        strong, weak = (each.logits for each in said)
        return plausible(contrast(strong, weak, self.beta), strong, self.alpha)
