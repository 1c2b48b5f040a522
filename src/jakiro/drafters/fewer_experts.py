"""A mixture of experts drafts with fewer experts per token than it decodes with: the weak routing
of SCMoE (arXiv 2405.14507), there an amateur to contrast with, as a self-drafter."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.target import Target
from jakiro.target.view import View, name_of


class FewerExperts(SelfDrafter):
    """Drafts with the ``top_k`` best experts of each token; None: half of what the target takes.
    Raises ``TargetRefused`` where the target has no routers, ``ConfigError``."""

    name = "fewer_experts"

    def __init__(self, target: Target, top_k: int | None = None) -> None:
        usual = _routed(target)
        chosen = max(1, usual // 2) if top_k is None else top_k
        if not 0 < chosen <= usual:
            raise ConfigError(f"top_k must be from 1 to {usual}, got {top_k}")
        routers = [
            name
            for name, module in target.model.named_modules()
            if vars(module).get("top_k") == usual
        ]
        if not routers:
            raise TargetRefused(_refusal(target))
        super().__init__(View(target, dict.fromkeys(routers, _takes(chosen))))


def _takes(top_k: int) -> Callable[[nn.Module], None]:
    def change(router: nn.Module) -> None:
        router.__dict__["top_k"] = top_k

    return change


def _routed(target: Target) -> int:
    """Experts per token of the target."""
    usual = getattr(target.config, "num_experts_per_tok", None)
    if not usual:
        raise TargetRefused(_refusal(target))
    return int(usual)


def _refusal(target: Target) -> str:
    return (
        f"{name_of(target)} has no routers that choose experts per token; mixtral, qwen2_moe, "
        "qwen3_moe, olmoe, deepseek_v3, glm4_moe and gpt_oss do. For a dense target use "
        "another drafter"
    )
