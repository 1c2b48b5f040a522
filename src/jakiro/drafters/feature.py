"""The drafting cycle of every head that reads the target's last feature (Jakiro, EAGLE).

The pair of feature ``f_i`` and next token ``x_{i+1}`` sits at draft position i and predicts the
token at i+2. The head's own cache holds one row per committed pair, always computed from true
features; rows written while a tree grows come from predicted features and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jakiro.cache.excerpt import Excerpt
from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.cache.mask import additive, attendable
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.drafters.branches import Branches, Sum, Watch, branches, gathered
from jakiro.drafters.experts import HeadOutput, fused_view
from jakiro.drafters.nn import DraftHead
from jakiro.drafters.vocabulary import DraftVocabulary
from jakiro.errors import ConfigError
from jakiro.target.compiled import Compiled, bucket
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

    ``contrast_levels``: how many are used (None: all that the head has). ``window``: a forward
    looks back on that many committed pairs only, and on the first ``sinks`` of the text (None: on
    all of them); a draft then costs the same behind a text of any length.
    """

    needs = LAST_FEATURE
    can_sample = True
    plan = TreePlan("dynamic", depth=6, width=10, budget=59)
    """The published setting, for targets of billions of parameters on a GPU."""

    def __init__(
        self,
        head: DraftHead,
        target: Target,
        contrast_levels: int | None = None,
        *,
        window: int | None = None,
        sinks: int = 4,
    ) -> None:
        self._fused = fused_view(head.eval())
        self.head = packed_view(self._fused)
        self._compiled: Compiled | None = None
        self.name = head.config.method
        self.num_parameters = sum(weight.numel() for weight in head.parameters())
        has = head.config.contrast_levels
        self._contrasts = has if contrast_levels is None else contrast_levels
        if not 0 <= self._contrasts <= has:
            raise ConfigError(
                f"contrast_levels must lie between 0 and {has} with this head, got "
                f"{contrast_levels}"
            )
        if sinks < 0 or (window is not None and window < 1):
            raise ConfigError(
                f"window must be at least 1 or None and sinks at least 0, got {window} and {sinks}"
            )
        self._window, self._sinks = window, sinks
        self._target = target
        self.vocabulary = DraftVocabulary(target, dict(head.named_buffers()).get("draft_ids"))
        self._cache = KVCache(1)
        self._features: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._last_fed = 0
        self._experts: list[list[int]] = []
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
            pair = tokens, features[None, : end - start]
            self._forward(self.head, pair, where, mask, self._cache)
            self._cache.advance(row, end - start)
        self._features.append(features[end - start :])
        self._tokens.append(torch.empty(0, dtype=torch.int64, device=features.device))

    def compile(self, backend: str) -> None:
        self._compiled = Compiled(self._fused, backend, "cache")

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
        last_fed = self._last_fed = depth - 1 - contrasts
        out = self._catch_up(contrasts if last_fed <= 0 else 0)
        watch = Watch() if request.is_traced else None

        def said(frontier: Frontier | None = None) -> Branches:
            found = self._timed(lambda: branches(out, kind, self.vocabulary))
            if watch is not None:
                watch.note(found, frontier)
            return found

        nodes = said()
        stable = list(self._cache.lengths)
        starts = torch.tensor(stable, device=request.roots.device)[:, None]
        # What the nodes fed last may see of those fed before, themselves included; additive.
        reach = out.next.new_zeros(len(stable), 1, 0)
        # Of each frontier node below the last fed level, its ancestor there.
        above: Tensor | None = None

        def expand(frontier: Frontier) -> Tensor:
            nonlocal out, nodes, reach, above
            rows = frontier.parent_rows
            if frontier.depth > last_fed:
                above = rows if above is None else above.gather(1, rows)
                guess = gathered(out.ahead[frontier.depth - last_fed - 1], above)
                return scores(self._timed(lambda: Sum(guess, self.vocabulary)), frontier.depth + 1)
            own = _visible(torch.eye, rows.shape[1], reach.dtype, reach.device)
            seen = reach.take_along_dim(rows[:, :, None], 1)
            reach = torch.cat([seen, own.expand(len(stable), -1, -1)], 2)
            parents = nodes.carried(frontier.tokens, rows)
            where = (starts + (frontier.depth - 1)).expand_as(rows)
            wanted = contrasts if frontier.depth == last_fed else 0
            fed = self.vocabulary.tokens(frontier.tokens)
            out = self._feed(fed, parents, where, reach, wanted)
            nodes = said(frontier)
            return scores(nodes, frontier.depth + 1)

        def scores(nodes: Branches, depth: int) -> Tensor:
            return nodes.scores(request.noise, depth, request.plan.width)

        first = scores(nodes, 1)[:, 0]
        tree = grow(request.plan, request.roots, first, expand, request.depth_caps, request.choose)
        if watch is not None:
            self._experts = watch.experts(tree)
        return self.vocabulary.named(tree)

    def origin(self, row: int, node: int, depth: int) -> str:
        if depth > self._last_fed + 1:
            return "contrast"
        config, expert = self.head.config, self._experts[row][node]
        if config.num_experts == 1:
            return self.name
        # Where a gate picks some, those picked are numbered anew at every node.
        is_known = expert >= 0 and config.active_experts == config.num_experts
        return f"expert {expert}" if is_known else "experts"

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
        if self._compiled is not None:  # padding is behind every pair, and graphs are few
            room = bucket(tokens.shape[1]) - tokens.shape[1]
            tokens, features = F.pad(tokens, (0, room)), F.pad(features, (0, 0, 0, room))
        rows, width = tokens.shape
        device = tokens.device
        starts = torch.tensor(self._cache.lengths, device=device)[:, None]
        where = starts + torch.arange(width, device=device)
        reach = _visible(_triangle, width, features.dtype, device).expand(rows, -1, -1)
        out = self._feed(tokens, features, where, reach, contrasts)
        for row, count in enumerate(new):
            self._cache.advance(row, count)
        return out.at(torch.tensor(new, device=device) - 1)

    def _feed(
        self, tokens: Tensor, features: Tensor, where: Tensor, reach: Tensor, contrasts: int
    ) -> HeadOutput:
        """Feed pairs behind the committed ones and those fed since. ``reach`` [B, N, F], additive:
        what each may see of all that is not committed, its own N last."""
        new = tokens.shape[1]
        lengths, fed = self._cache.lengths, reach.shape[2]
        span = self._cache.aim(slice(0, len(tokens)), new, fed - new)
        seen: KVCache | Excerpt = self._cache
        if self._window is not None and min(lengths) > self._window + self._sinks:
            ends = [length + fed for length in lengths]
            seen = Excerpt(self._cache, ends, self._sinks, self._window + fed)
            lengths = [self._sinks + self._window] * len(lengths)
            span = lengths[0] + fed
        mask = attendable(reach, lengths, span)[:, None]
        run = self.head if self._compiled is None else self._compiled
        return self._forward(run, (tokens, features), where, mask, seen, contrasts)

    def _forward(
        self,
        run: Callable[..., HeadOutput],
        pairs: tuple[Tensor, Tensor],
        where: Tensor,
        mask: Tensor | None,
        cache: KVCache | Excerpt,
        contrasts: int = 0,
    ) -> HeadOutput:
        """One call of the head, counted."""
        self.num_forwards += 1
        tokens, features = pairs
        return self._timed(
            lambda: run(
                embeddings=self._target.embed(tokens),
                features=features,
                positions=where,
                mask=mask,
                cache=cache,
                contrasts=contrasts,
            )
        )

    def _timed(self, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        done = work()
        self.module_ms += 1e3 * (time.perf_counter() - began)
        return done


@lru_cache
def _visible(
    shape: Callable[..., Tensor], width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What ``width`` entries may see of each other, additive [1, W, W]: themselves (``eye``), or
    all before as well."""
    return additive(shape(width, device=device).bool()[None], dtype)[0]


def _triangle(width: int, device: torch.device) -> Tensor:
    return torch.ones(width, width, device=device).tril()
