"""Medusa (Cai et al., arXiv 2401.10774): heads on the target's last feature, one per token ahead.

Which feature. The root ``x_n`` is drawn from the target after ``f_{n-1}`` and is not fed yet, so
``f_{n-1}`` is the newest true feature there is: that of the last accepted node. The target's own
head on it gave the root; head k (from 0) on it guesses ``x_{n+1+k}``, the nodes at depth k + 1.
No head knows which token the root became, nor what lies above a node: the tree is the product of
independent guesses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.cache.kv_cache import KVRow
from jakiro.drafters.base import Drafter, DraftRequest, Head
from jakiro.errors import ConfigError
from jakiro.target.features import LAST_FEATURE
from jakiro.target.output import TargetOutput
from jakiro.target.packed import packed_view
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


@dataclass(frozen=True)
class MedusaConfig:
    """``num_heads``: tokens guessed ahead, the deepest level of a tree. ``num_layers``: residual
    blocks of each head. ``own_head``: each head ends in a language model head of its own
    (published), else all share the frozen one of the target. Raises ``ConfigError``."""

    method: str
    hidden_size: int
    vocab_size: int
    num_heads: int = 4
    num_layers: int = 1
    own_head: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vocab_size", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_layers < 0:
            raise ConfigError(f"num_layers must not be negative, got {self.num_layers}")


class _ResBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        # At first a head is what comes behind its blocks.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        return states + F.silu(self.linear(states))


class MedusaHeads(Head):
    """Head k is the child named ``k``; parameter names are those of the published checkpoints:
    ``k.i.linear.{weight,bias}`` of block i, ``k.R.weight`` of the head behind R blocks."""

    __call__: Callable[..., Tensor]
    config: MedusaConfig

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        for number in range(config.num_heads):
            layers: list[nn.Module] = [_ResBlock(size) for _ in range(config.num_layers)]
            if config.own_head:
                layers.append(nn.Linear(size, config.vocab_size, bias=False))
            self.add_module(str(number), nn.Sequential(*layers))

    def forward(self, features: Tensor, lm_head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [.., K, V] of K heads from features [.., H]; ``lm_head``, that of the target, is
        asked where the heads have none of their own."""
        states = torch.stack([head(features) for head in self.children()], -2)
        return states if self.config.own_head else lm_head(states)


class Medusa(Drafter):
    """Drives ``MedusaHeads``: one call per cycle, whatever the tree; nothing to cache."""

    name = "medusa"
    needs = LAST_FEATURE
    can_sample = True
    plan = TreePlan.parse(
        "static:0,1,2,3,4,5,6,7,8,9,0.0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2,1.3,1.4,1.5,"
        "1.6,2.0,2.1,2.2,3.0,3.1,4.0,5.0,6.0,7.0,8.0,9.0,0.0.0,0.0.1,0.0.2,0.0.3,0.0.4,0.0.5,0.0.6,"
        "0.0.7,0.0.8,0.0.9,0.1.0,0.1.1,0.1.2,0.2.0,0.2.1,0.3.0,0.4.0,0.5.0,0.6.0,0.7.0,1.0.0,1.0.1,"
        "2.0.0,0.0.0.0,0.0.0.1"
    )
    """The published tree of 63 nodes, made for a model of 7B parameters on a GPU."""

    def __init__(self, heads: MedusaHeads, target: Target) -> None:
        self.heads = packed_view(heads.eval())
        self.num_parameters = sum(weight.numel() for weight in heads.parameters())
        self._target = target
        # Per row the feature [H] of the last committed token that was fed, the one before the root.
        self._features: list[Tensor] = []
        self.num_forwards = 0

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        assert features is not None, "the heads need the last feature of the prompt"
        self._features.append(features[-1])

    def save(self, row: int, length: int) -> KVRow:
        return KVRow(length)  # of any prompt, the last feature is all that is read

    def draft(self, request: DraftRequest) -> TokenTree:
        num_levels = self.heads.config.num_heads
        caps = [min(cap, num_levels) for cap in request.depth_caps]
        if max(caps) < 1:
            return TokenTree.root_only(request.roots)
        logits = self._forward()

        def scores(depth: int) -> Tensor:
            """[B, 1, V]: at one depth all nodes have the same guesses below them."""
            return request.noise.scores(logits[:, depth - 1, None], depth)

        def expand(frontier: Frontier) -> Tensor:
            return scores(frontier.depth + 1).expand(-1, frontier.tokens.shape[1], -1)

        return grow(request.plan, request.roots, scores(1)[:, 0], expand, caps, request.choose)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        assert out.features is not None
        self._features = [out.features[row, path[-1]] for row, path in enumerate(verdict.paths)]

    def keep(self, rows: list[int]) -> None:
        self._features = [self._features[row] for row in rows]

    def _forward(self) -> Tensor:
        """Logits [B, K, V] of all heads, timed and counted."""
        began = time.perf_counter()
        logits = self.heads(torch.stack(self._features), self._target.lm_head)
        self.module_ms += 1e3 * (time.perf_counter() - began)
        self.num_forwards += 1
        return logits
