"""A mixture of experts drafts with fewer experts per token than it decodes with: the weak routing
of SCMoE (arXiv 2405.14507), there an amateur to contrast with, as a self-drafter."""

from __future__ import annotations

from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.target.routing import experts_per_token, with_experts
from jakiro.target.target import Target


class FewerExperts(SelfDrafter):
    """Drafts with the ``top_k`` best experts of each token; None: half of what the target takes.
    Raises ``TargetRefused`` where the target has no routers, ``ConfigError``."""

    name = "fewer_experts"

    def __init__(self, target: Target, top_k: int | None = None) -> None:
        half = max(1, experts_per_token(target) // 2)
        super().__init__(with_experts(target, half if top_k is None else top_k))
