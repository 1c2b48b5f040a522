"""The drafting cycle of every head that reads the target's last feature (Jakiro, EAGLE).

The pair of feature ``f_i`` and next token ``x_{i+1}`` sits at draft position i and predicts the
token at i+2. The head's own cache holds one row per committed pair, always computed from true
features; rows written while a tree grows come from predicted features and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.cache.mask import attendable
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.drafters.branches import Branches, Sum, branches, gathered
from jakiro.drafters.experts import HeadOutput, fused_view
from jakiro.drafters.nn import DraftHead
from jakiro.drafters.vocabulary import DraftVocabulary
from jakiro.errors import ConfigError
from jakiro.target.features import LAST_FEATURE
from jakiro.target.output import TargetOutput
from jakiro.target.packed import packed_view
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

T = TypeVar("T")

MAX_PENDING = 32
"""While nothing is drafted, committed pairs are fed this many at a time."""


class FeatureDrafter(Drafter):
    """Drives a ``DraftHead``: a catch-up forward over the newly committed pairs, then one forward
    per further level; each contrastive branch that is used spares the last levels one.

    ``contrast_levels``: how many are used (None: all that the head has).
    """

    needs = LAST_FEATURE
    can_sample = True
    plan = TreePlan("dynamic", depth=6, width=10, budget=59)
    """The published setting, for targets of billions of parameters on a GPU."""

    def __init__(self, head: DraftHead, target: Target, contrast_levels: int | None = None) -> None:
        self.head = packed_view(fused_view(head.eval()))
        self.name = head.config.method
        self.num_parameters = sum(weight.numel() for weight in head.parameters())
        has = head.config.contrast_levels
        self._contrasts = has if contrast_levels is None else contrast_levels
        if not 0 <= self._contrasts <= has:
            raise ConfigError(
                f"contrast_levels must lie between 0 and {has} with this head, got "
                f"{contrast_levels}"
            )
        self._target = target
        self.vocabulary = DraftVocabulary(target, dict(head.named_buffers()).get("draft_ids"))
        self._cache = KVCache(1)
        self._features: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self.num_forwards = 0

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.resume(KVRow(0), ids, features)

    def save(self, row: int, length: int) -> KVRow:
        return self._cache.save(row, length)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        assert features is not None, "a feature drafter needs the last features of the prompt"
        row, start, end = self._cache.admit(known), known.length, len(ids) - 1
        if end > start:
            self._cache.aim(slice(row, row + 1), end - start)
            tokens = torch.tensor([ids[start + 1 :]], device=features.device)
            where = torch.arange(start, end, device=features.device)[None]
            pairs = torch.arange(end, device=features.device)
            mask = (pairs <= where[:, :, None])[:, None] if start else None
            self._forward(tokens, features[None, : end - start], where, mask)
            self._cache.advance(row, end - start)
        self._features.append(features[end - start :])
        self._tokens.append(torch.empty(0, dtype=torch.int64, device=features.device))

    def draft(self, request: DraftRequest) -> TokenTree:
        self._tokens = [
            torch.cat([tokens, root])
            for tokens, root in zip(self._tokens, request.roots[:, None], strict=True)
        ]
        if max(request.depth_caps) < 1:
            if max(map(len, self._features)) >= MAX_PENDING:
                self._catch_up(0)
            return TokenTree.root_only(request.roots)
        depth, kind = min(request.plan.depth, max(request.depth_caps)), self.head.config.branches
        if request.is_sampled and kind == "union":
            # Candidates proposed in turn are no draw from one law; the experts' mixture is one.
            kind = "decoupled"
        contrasts = max(0, min(self._contrasts, depth - 1))
        # Nodes deeper than this are never fed: contrasts of this level score their children.
        last_fed = depth - 1 - contrasts
        out = self._catch_up(contrasts if last_fed <= 0 else 0)
        nodes = self._timed(lambda: branches(out, kind, self.vocabulary))
        stable = list(self._cache.lengths)
        lengths = torch.tensor(stable, device=request.roots.device)
        reach = torch.zeros(len(stable), 1, 0, dtype=torch.bool, device=lengths.device)
        # Of each frontier node below the last fed level, its ancestor there.
        above: Tensor | None = None

        def expand(frontier: Frontier) -> Tensor:
            nonlocal out, nodes, reach, above
            rows = frontier.parent_rows
            if frontier.depth > last_fed:
                above = rows if above is None else above.gather(1, rows)
                guess = gathered(out.ahead[frontier.depth - last_fed - 1], above)
                return scores(self._timed(lambda: Sum(guess, self.vocabulary)), frontier.depth + 1)
            width = rows.shape[1]
            seen = reach.gather(1, rows[:, :, None].expand(-1, -1, reach.shape[2]))
            own = torch.eye(width, dtype=torch.bool, device=rows.device)
            reach = torch.cat([seen, own.expand(len(stable), -1, -1)], 2)
            where = (lengths + (frontier.depth - 1))[:, None].expand(-1, width)
            parents, tokens = nodes.carried(frontier.tokens, rows), frontier.tokens
            span = self._cache.aim(slice(0, len(stable)), width)
            mask = attendable(reach, lengths, span)[:, None]
            wanted = contrasts if frontier.depth == last_fed else 0
            out = self._forward(self.vocabulary.tokens(tokens), parents, where, mask, wanted)
            self._cache.lengths = [length + width for length in self._cache.lengths]
            nodes = self._timed(lambda: branches(out, kind, self.vocabulary))
            return scores(nodes, frontier.depth + 1)

        def scores(nodes: Branches, depth: int) -> Tensor:
            return nodes.scores(request.noise, depth, request.plan.width)

        first = scores(nodes, 1)[:, 0]
        tree = grow(request.plan, request.roots, first, expand, request.depth_caps)
        self._cache.lengths = stable
        return self.vocabulary.named(tree)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        assert out.features is not None
        for row, path in enumerate(verdict.paths):
            nodes = verdict.path[row, : len(path)]
            self._features[row] = torch.cat([self._features[row], out.features[row, nodes]])
            self._tokens[row] = torch.cat([self._tokens[row], tree.tokens[row, nodes[1:]]])

    def keep(self, rows: list[int]) -> None:
        self._cache.keep(rows)
        self._features = [self._features[row] for row in rows]
        self._tokens = [self._tokens[row] for row in rows]

    def _catch_up(self, contrasts: int) -> HeadOutput:
        """Feed the pairs committed since they were last fed, the last of which ends in the root.

        Returns the output of every row's last pair, [B, 1, ...].
        """
        new = [len(features) for features in self._features]
        tokens = pad_sequence(self._tokens, batch_first=True)
        features = pad_sequence(self._features, batch_first=True)
        self._tokens = [row[:0] for row in self._tokens]
        self._features = [row[:0] for row in self._features]
        rows, width = tokens.shape
        device = tokens.device
        lengths = torch.tensor(self._cache.lengths, device=device)
        where = lengths[:, None] + torch.arange(width, device=device)
        span = self._cache.aim(slice(0, rows), width)
        # Committed pairs lie at their positions, so plain causality is a comparison.
        mask = torch.arange(span, device=device) <= where[:, :, None]
        out = self._forward(tokens, features, where, mask[:, None], contrasts)
        for row, count in enumerate(new):
            self._cache.advance(row, count)
        return out.at(torch.tensor(new, device=device) - 1)

    def _forward(
        self,
        tokens: Tensor,
        features: Tensor,
        where: Tensor,
        mask: Tensor | None,
        contrasts: int = 0,
    ) -> HeadOutput:
        """One call of the head, counted."""
        self.num_forwards += 1
        return self._timed(
            lambda: self.head(
                self._target.embed(tokens), features, where, mask, self._cache, contrasts
            )
        )

    def _timed(self, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        done = work()
        self.module_ms += 1e3 * (time.perf_counter() - began)
        return done
