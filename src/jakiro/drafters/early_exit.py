"""Early exit with the stopping rule of Kangaroo (arXiv 2404.18911): the first layers of the target,
its final norm and its head.

Kangaroo puts a trained adapter between layer and head, and its verification goes on from the
states of the exit layer. Here nothing is trained and the target verifies all of its layers.
"""

from __future__ import annotations

from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.target.view import Gates
from jakiro.tree.shapes import TreePlan


class EarlyExit(SelfDrafter):
    """Drafts with the first ``exit_layer`` layers (None: half of them), up to a token less likely
    than ``confidence``, which is still drafted. Raises ``ConfigError``."""

    name = "early_exit"
    plan = TreePlan.chain(6)

    def __init__(
        self, target: Target, exit_layer: int | None = None, confidence: float = 0.6
    ) -> None:
        num_layers = target.num_layers
        first = max(1, num_layers // 2) if exit_layer is None else exit_layer
        if not 0 < first <= num_layers:
            raise ConfigError(f"exit_layer must be from 1 to {num_layers}, got {exit_layer}")
        gates = Gates(target)
        gates.close_layers(set(range(first, num_layers)))
        super().__init__(gates.view, confidence)
