"""Which hidden states of the target a drafter reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """``last``: the hidden state after the final norm. ``layers``: residual streams entering
    those blocks (``hidden_states[i]`` of ``transformers``). Several are concatenated, layers
    first, along the last dimension."""

    last: bool = False
    layers: tuple[int, ...] = ()

    @property
    def indices(self) -> list[int]:
        """Indices into the ``hidden_states`` of ``transformers``."""
        return [*self.layers, *([-1] if self.last else [])]


NO_FEATURES = FeatureSpec()
LAST_FEATURE = FeatureSpec(last=True)
