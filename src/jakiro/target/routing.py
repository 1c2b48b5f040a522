"""A mixture of experts with another number of experts per token."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.target import Target
from jakiro.target.view import View, name_of


def experts_per_token(target: Target) -> int:
    """How many experts each token of ``target`` takes. Raises ``TargetRefused``: none, it is
    dense."""
    usual = getattr(target.config, "num_experts_per_tok", None)
    if not usual:
        raise TargetRefused(_refusal(target))
    return int(usual)


def with_experts(target: Target, top_k: int) -> View:
    """A view of ``target`` with the ``top_k`` best experts of each token.

    Raises:
        ConfigError: ``top_k`` is not from 1 to what the target takes.
        TargetRefused: the target has no routers.
    """
    usual = experts_per_token(target)
    if not 0 < top_k <= usual:
        raise ConfigError(f"the experts per token must be from 1 to {usual}, got {top_k}")
    routers = [
        name for name, module in target.model.named_modules() if vars(module).get("top_k") == usual
    ]
    if not routers:
        raise TargetRefused(_refusal(target))
    return View(target, dict.fromkeys(routers, _takes(top_k)))


def _takes(top_k: int) -> Callable[[nn.Module], None]:
    def change(router: nn.Module) -> None:
        router.__dict__["top_k"] = top_k

    return change


def _refusal(target: Target) -> str:
    return (
        f"{name_of(target)} has no routers that choose experts per token; mixtral, qwen2_moe, "
        "qwen3_moe, olmoe, deepseek_v3, glm4_moe and gpt_oss do. A dense target has nothing to "
        "leave out; choose another method"
    )
