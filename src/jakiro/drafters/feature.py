"""The drafting cycle of every head that reads the target's last feature (Jakiro, EAGLE).

The pair of feature ``f_i`` and next token ``x_{i+1}`` sits at draft position i and predicts the
token at i+2. The head's own cache holds one row per committed pair, always computed from true
features; rows written while a tree grows come from predicted features and are dropped.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jakiro.cache.kv_cache import KVCache
from jakiro.cache.mask import attendable
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.drafters.experts import HeadOutput, fused_view
from jakiro.drafters.nn import DraftHead
from jakiro.target.features import LAST_FEATURE
from jakiro.target.output import TargetOutput
from jakiro.target.packed import packed_view
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


def last_level_features(after_next: Tensor, parent_rows: Tensor) -> Tensor:
    """Features [B, K, H] that score the last level without a forward.

    ``after_next`` [B, R, H] is the contrastive branch of the rows fed last; a frontier node takes
    the one of its *parent* (``parent_rows`` [B, K]), which predicts the token after the node.
    """
    return after_next.gather(1, parent_rows[:, :, None].expand(-1, -1, after_next.shape[-1]))


class FeatureDrafter(Drafter):
    """Drives a ``DraftHead``: a catch-up forward over the newly committed pairs, then one forward
    per further level; with a contrastive branch the last level costs none."""

    needs = LAST_FEATURE
    can_sample = True
    plan = TreePlan("dynamic", depth=6, width=10, budget=59)
    """The published setting, for targets of billions of parameters on a GPU."""

    def __init__(self, head: DraftHead, target: Target) -> None:
        self.head = packed_view(fused_view(head.eval()))
        self.name = head.config.method
        self._target = target
        self._cache = KVCache(1)
        self._features: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self.num_forwards = 0

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        assert features is not None, "a feature drafter needs the last features of the prompt"
        row, known = self._cache.admit(), len(ids) - 1
        if known:
            self._cache.aim(slice(row, row + 1), known)
            tokens = torch.tensor([ids[1:]], device=features.device)
            where = torch.arange(known, device=features.device)[None]
            self._forward(tokens, features[None, :known], where, None)
            self._cache.advance(row, known)
        self._features.append(features[known:])
        self._tokens.append(torch.empty(0, dtype=torch.int64, device=features.device))

    def draft(self, request: DraftRequest) -> TokenTree:
        depth = min(request.plan.depth, max(request.depth_caps))
        feature, after_next = self._catch_up(request.roots, self._contrasts and depth == 2)
        scores = self._scores(feature, request, 1)[:, 0]
        stable = list(self._cache.lengths)
        lengths = torch.tensor(stable, device=feature.device)
        reach = torch.zeros(len(stable), 1, 0, dtype=torch.bool, device=feature.device)

        def expand(frontier: Frontier) -> Tensor:
            nonlocal feature, after_next, reach
            if after_next is not None:
                guess = last_level_features(after_next, frontier.parent_rows)
                return self._scores(guess, request, depth)
            rows = frontier.parent_rows[:, :, None]
            width = rows.shape[1]
            seen = reach.gather(1, rows.expand(-1, -1, reach.shape[2]))
            own = torch.eye(width, dtype=torch.bool, device=rows.device)
            reach = torch.cat([seen, own.expand(len(stable), -1, -1)], 2)
            where = (lengths + (frontier.depth - 1))[:, None].expand(-1, width)
            parents = feature.gather(1, rows.expand(-1, -1, feature.shape[-1]))
            span = self._cache.aim(slice(0, len(stable)), width)
            mask = attendable(reach, lengths, span)[:, None]
            contrast = self._contrasts and frontier.depth == depth - 2
            out = self._forward(frontier.tokens, parents, where, mask, contrast)
            self._cache.lengths = [length + width for length in self._cache.lengths]
            feature, after_next = out.next, out.ahead[0] if out.ahead else None
            return self._scores(feature, request, frontier.depth + 1)

        tree = grow(request.plan, request.roots, scores, expand, request.depth_caps)
        self._cache.lengths = stable
        return tree

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        assert out.features is not None
        for row, path in enumerate(verdict.paths):
            nodes = verdict.path[row, : len(path)]
            self._features[row] = out.features[row, nodes]
            self._tokens[row] = tree.tokens[row, nodes[1:]]

    def keep(self, rows: list[int]) -> None:
        self._cache.keep(rows)
        self._features = [self._features[row] for row in rows]
        self._tokens = [self._tokens[row] for row in rows]

    def _catch_up(self, roots: Tensor, contrast: bool) -> tuple[Tensor, Tensor | None]:
        """Feed the pairs committed since the last draft, the last of which ends in the root.

        Returns both branches of every row's last pair, each [B, 1, H].
        """
        new = [len(features) for features in self._features]
        tokens = pad_sequence(
            [torch.cat([t, r]) for t, r in zip(self._tokens, roots[:, None], strict=True)],
            batch_first=True,
        )
        features = pad_sequence(self._features, batch_first=True)
        rows, width = tokens.shape
        lengths = torch.tensor(self._cache.lengths, device=roots.device)
        where = lengths[:, None] + torch.arange(width, device=roots.device)
        span = self._cache.aim(slice(0, rows), width)
        # Committed pairs lie at their positions, so plain causality is a comparison.
        mask = torch.arange(span, device=roots.device) <= where[:, :, None]
        out = self._forward(tokens, features, where, mask[:, None], contrast)
        for row, count in enumerate(new):
            self._cache.advance(row, count)
        last = (torch.tensor(new, device=roots.device) - 1)[:, None, None]
        last = last.expand(-1, -1, features.shape[-1])
        return (
            out.next.gather(1, last),
            out.ahead[0].gather(1, last) if out.ahead else None,
        )

    @property
    def _contrasts(self) -> bool:
        return self.head.config.contrast_levels > 0

    def _scores(self, features: Tensor, request: DraftRequest, depth: int) -> Tensor:
        """Log scores [B, K, V] of nodes at ``depth`` from the features [B, K, H] above them."""
        began = time.perf_counter()
        logits = self._target.lm_head(features)
        self.module_ms += 1e3 * (time.perf_counter() - began)
        return request.noise.scores(logits, depth)

    def _forward(
        self,
        tokens: Tensor,
        features: Tensor,
        where: Tensor,
        mask: Tensor | None,
        contrast: bool = False,
    ) -> HeadOutput:
        """One call of the head, timed and counted."""
        began = time.perf_counter()
        out = self.head(self._target.embed(tokens), features, where, mask, self._cache, contrast)
        self.module_ms += 1e3 * (time.perf_counter() - began)
        self.num_forwards += 1
        return out
