"""What one target forward returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TargetOutput:
    """Raw logits [B, N, V] and the features a drafter asked for [B, N, F] (None: asked nothing)."""

    logits: Tensor
    features: Tensor | None = None
