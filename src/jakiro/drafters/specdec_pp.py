"""SpecDec++ (Huang et al., arXiv 2405.19715): a draft model with a head that tells how likely its
tokens are to be accepted, and a draft that ends once one of them probably is not.

Where drafting costs and rejection costs more, the best time to stop is when the probability of at
least one rejection so far exceeds a threshold (theorem 1 there). The head reads the model's last
state after a token was fed, so the product of acceptances lags by one: with token i+1 made, it
covers tokens 1 to i. Whether a token is in the draft thus depends on those before it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.drafters.base import Head
from jakiro.drafters.model_drafter import ModelDrafter
from jakiro.errors import ConfigError
from jakiro.target.features import LAST_FEATURE
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier
from jakiro.tree.shapes import TreePlan


@dataclass(frozen=True)
class AcceptanceConfig:
    """``hidden_size``: of the draft model. ``num_blocks``: residual blocks. Raises
    ``ConfigError``."""

    method: str
    hidden_size: int
    num_blocks: int = 3

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ConfigError(f"hidden_size must be at least 1, got {self.hidden_size}")
        if self.num_blocks < 0:
            raise ConfigError(f"num_blocks must not be negative, got {self.num_blocks}")


class AcceptanceHead(Head):
    """Blocks ``x + silu(W x + b)``, then the log odds that the token will be accepted."""

    __call__: Callable[..., Tensor]
    config: AcceptanceConfig

    def __init__(self, config: AcceptanceConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.blocks = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_blocks))
        self.odds = nn.Linear(size, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Log odds [..] from the draft model's last states [.., H], each after its own token."""
        for block in self.blocks:
            states = states + F.silu(block(states))
        odds: Tensor = self.odds(states)[..., 0]
        return odds


class SpecDecPP(ModelDrafter):
    """Drafts with ``model``, at most as deep as its plan, and two levels at least.

    Args:
        head: the acceptance head trained on ``model`` for ``target``.
        threshold: between 0 and 1; a draft goes on while ``1 - a_1 a_2 ..`` does not exceed it,
            ``a_i`` being the predicted acceptances. Of a tree the path counts that is best by
            their product.

    Raises:
        ConfigError: the threshold is no probability, or the head is of another size.
        TargetRefused: the states of ``model`` cannot be read.
    """

    name = "specdec_pp"
    plan = TreePlan.chain(20)
    reads = LAST_FEATURE

    def __init__(
        self, head: AcceptanceHead, model: Target, target: Target, threshold: float = 0.3
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must lie between 0 and 1, got {threshold}")
        if head.config.hidden_size != model.hidden_size:
            raise ConfigError(
                f"the acceptance head reads states of size {head.config.hidden_size}, those of the "
                f"draft model have {model.hidden_size}; use the model it was trained on"
            )
        model.check_features()
        super().__init__(model, target)
        self.num_parameters += sum(weight.numel() for weight in head.parameters())
        self.head, self.threshold = head, threshold
        # [B, K]: of each node fed last, the probability that its path is accepted.
        self._chances = torch.empty(0)

    def _goes_on(self, frontier: Frontier | None, out: TargetOutput) -> Tensor:
        if frontier is None:
            self._chances = out.logits.new_ones(len(out.logits), 1)
            return torch.ones_like(self._chances[:, 0], dtype=torch.bool)
        assert out.features is not None, "the model was asked for its last states"
        above = self._chances.gather(1, frontier.parent_rows)
        self._chances = above * self.head(out.features).sigmoid().to(above.dtype)
        return 1 - self._chances.amax(1) <= self.threshold
