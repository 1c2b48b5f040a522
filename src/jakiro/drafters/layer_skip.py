"""Unified layer skipping (arXiv 2404.06954) as a drafter: the target without evenly spaced layers.

The paper skips the same layers for every token and decodes with what is left, which changes the
text; here the target verifies.
"""

from __future__ import annotations

from collections.abc import Sequence

from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.target.view import Gates


class LayerSkip(SelfDrafter):
    """Drafts with the layers ``kept``; None: ``kept_layers`` for ``speedup``."""

    name = "layer_skip"

    def __init__(
        self, target: Target, speedup: float = 2.0, kept: Sequence[int] | None = None
    ) -> None:
        layers = range(target.num_layers)
        chosen = kept_layers(len(layers), speedup) if kept is None else list(kept)
        if not chosen or not set(chosen) <= set(layers):
            raise ConfigError(
                f"kept must name layers of the target, 0 to {len(layers) - 1}, got {chosen}"
            )
        gates = Gates(target)
        gates.close_layers(set(layers) - set(chosen))
        super().__init__(gates.view)


def kept_layers(num_layers: int, speedup: float) -> list[int]:
    """About ``num_layers / speedup`` layers, evenly spaced, the first and the last among them."""
    if speedup < 1:
        raise ConfigError(f"speedup must be at least 1 (nothing is skipped), got {speedup}")
    count = max(1, round(num_layers / speedup))
    return [round(i * (num_layers - 1) / max(1, count - 1)) for i in range(count)]
