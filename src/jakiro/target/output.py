"""What one target forward returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TargetOutput:
    """Raw logits [B, N, V] and the features a drafter asked for [B, N, F] (None: asked nothing)."""

    logits: Tensor
    features: Tensor | None = None

    def first(self, num_nodes: int) -> TargetOutput:
        """That of the first ``num_nodes`` nodes; the others were padding."""
        if self.logits.shape[1] == num_nodes:
            return self
        features = None if self.features is None else self.features[:, :num_nodes]
        return TargetOutput(self.logits[:, :num_nodes], features)
