"""The drafting cycle of every head that reads the target's last feature (Jakiro, EAGLE).

The pair of feature ``f_i`` and next token ``x_{i+1}`` sits at draft position i and predicts the
token at i+2. The head's own cache holds one row per committed pair, always computed from true
features; rows written while a tree grows come from predicted features and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from jakiro.cache.deferred import Deferred
from jakiro.cache.excerpt import Excerpt, edges_of
from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.cache.mask import additive, attendable, below
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.drafters.branches import Branches, Sum, Watch, branches, gathered, sharpness_of
from jakiro.drafters.experts import HeadOutput
from jakiro.drafters.fused import fused_view
from jakiro.drafters.nn import DraftHead
from jakiro.drafters.pending import Pending
from jakiro.drafters.vocabulary import DraftVocabulary
from jakiro.errors import ConfigError
from jakiro.target.compiled import Compiled, for_compiling
from jakiro.target.output import TargetOutput
from jakiro.target.packed import packed_view
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

T = TypeVar("T")

MAX_PENDING = 16
"""A row with so many pairs pending, of its prompt or committed while nothing is drafted, remembers
them before the next draft. Fewer are fed by that draft, or wait where there is none."""


class FeatureDrafter(Drafter):
    """Drives a ``DraftHead``: a catch-up forward over the newly committed pairs, then one forward
    per further level; each contrastive branch that is used spares the last levels one.

    ``contrast_levels``: how many are used (None: all that the head has). ``window``: a forward
    looks back on that many committed pairs only, and on the first ``sinks`` of the text (None: on
    all of them); a draft then costs the same behind a text of any length. ``sharpness``: of the
    branches, the first one first, the two numbers of ``Sharpness`` (training measures them), or
    one for both; 1 where none is given.
    """

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
        sharpness: Sequence[float | Sequence[float]] = (),
    ) -> None:
        self.head = packed_view(fused_view(head.eval()))
        self._compiled: Compiled | None = None
        self.name = head.config.method
        self.needs = head.config.needs
        self.num_parameters = sum(weight.numel() for weight in head.parameters())
        has = head.config.contrast_levels
        self.free_levels = has if contrast_levels is None else contrast_levels
        if not 0 <= self.free_levels <= has:
            raise ConfigError(
                f"contrast_levels must lie between 0 and {has} with this head, got "
                f"{contrast_levels}"
            )
        if sinks < 0 or (window is not None and window < 1):
            raise ConfigError(
                f"window must be at least 1 or None and sinks at least 0, got {window} and {sinks}"
            )
        self._window, self._sinks = window, sinks
        self._sharpness = sharpness_of(sharpness, 1 + has)
        self._target = target
        self.vocabulary = DraftVocabulary(target, dict(head.named_buffers()).get("draft_ids"))
        self._cache = KVCache(1)
        self._pending = Pending()
        self._last_fed = 0
        self._experts: list[list[int]] = []
        self.num_forwards = 0

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.resume(KVRow(0), ids, features)

    def save(self, row: int, length: int) -> KVRow:
        self._remember([row])
        return self._cache.save(row, length)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        assert features is not None, "a feature drafter needs the last features of the prompt"
        self._cache.admit(known)
        self._pending.begin(features, ids[known.length + 1 :])

    @torch.inference_mode()
    def compile(self, backend: str) -> None:
        self.head = for_compiling(self.head, backend, is_rounded=True)
        self._compiled = run = Compiled(self.head, backend, "cache")
        if run.is_bucketed:
            return
        # All kinds at once: pairs with true features and with predicted ones, by contrasts wanted.
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self._target.device)
        given = self._target.embed(tokens)
        for states, contrasts in product({1, len(self.needs.indices)}, range(self.free_levels + 1)):
            run(
                embeddings=given,
                features=given.repeat(1, 1, states),
                positions=tokens,
                mask=given.new_zeros(1, 1, 2, 2),
                cache=Deferred(),
                contrasts=contrasts,
            )

    def draft(self, request: DraftRequest) -> TokenTree:
        self._remember_many()
        self._pending.roots(request.roots.tolist())
        if max(request.depth_caps) < 1:
            return TokenTree.root_only(request.roots)
        depth, kind = min(request.plan.depth, max(request.depth_caps)), self.head.config.branches
        if request.is_sampled and kind == "union":
            # Candidates proposed in turn are no draw from one law; the experts' mixture is one.
            kind = "decoupled"
        contrasts = max(0, min(self.free_levels, depth - 1))
        # Nodes deeper than this are never fed: contrasts of this level score their children.
        last_fed = self._last_fed = depth - 1 - contrasts
        out = self._catch_up(contrasts if last_fed <= 0 else 0)
        watch = Watch() if request.is_traced else None

        def said(frontier: Frontier | None = None) -> Branches:
            found = self._timed(lambda: branches(out, kind, self.vocabulary, self._sharpness[0]))
            if watch is not None:
                watch.note(found, frontier)
            return found

        nodes = said()
        starts = torch.tensor(self._cache.lengths, device=request.roots.device)[:, None]
        # What the nodes fed last may see, additive, and how many were fed in all.
        shown, num_fed = self._shown(), 0
        mask = attendable(out.next.new_zeros(len(shown), 1, 0), shown, max(shown))
        # Of each frontier node below the last fed level, its ancestor there.
        above: Tensor | None = None

        def expand(frontier: Frontier) -> Tensor:
            nonlocal out, nodes, mask, num_fed, above
            rows = frontier.parent_rows
            if frontier.depth > last_fed:
                above = rows if above is None else above.gather(1, rows)
                ahead = frontier.depth - last_fed
                guess, sharpness = gathered(out.ahead[ahead - 1], above), self._sharpness[ahead]
                found = self._timed(lambda: Sum(guess, self.vocabulary, sharpness))
                return scores(found, frontier.depth + 1)
            own = _visible(torch.eye, rows.shape[1], mask.dtype, mask.device)
            mask = below(mask, rows, own, [length + num_fed for length in shown])
            pairs = self.vocabulary.tokens(frontier.tokens), nodes.carried(frontier.tokens, rows)
            wanted = contrasts if frontier.depth == last_fed else 0
            out = self._feed(pairs, starts + (frontier.depth - 1), mask, num_fed, wanted)
            num_fed += rows.shape[1]
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
        size, tokens = tree.num_nodes, tree.listed.tokens
        places = [row * size + node for row, path in enumerate(verdict.paths) for node in path]
        index = torch.tensor(places, device=out.features.device)
        kept = out.features.flatten(0, 1).index_select(0, index)
        for row, features in enumerate(kept.split([len(path) for path in verdict.paths])):
            below = [tokens[row][node] for node in verdict.paths[row][1:]]
            self._pending.commit(row, features, below)

    def keep(self, rows: list[int]) -> None:
        self._cache.keep(rows)
        self._pending.keep(rows)

    def _catch_up(self, contrasts: int) -> HeadOutput:
        """Feed the pairs committed since they were last fed, the last of which ends in the root.

        Returns the output of every row's last pair, [B, 1, ...].
        """
        new, shown = self._pending.counts, self._shown()
        width = max(new)
        if self._compiled is not None:
            # One more costs little, and one alone would be a kind of its own.
            width = self._compiled.bucket(max(width, 2))
        pairs, where = self._pending.take(self._cache.lengths, width)
        reach = _visible(_triangle, width, pairs[1].dtype, where.device).expand(len(new), -1, -1)
        mask = attendable(reach, shown, max(shown) + width)
        out = self._feed(pairs, where, mask, 0, contrasts)
        for row, count in enumerate(new):
            self._cache.advance(row, count)
        return out.at([count - 1 for count in new])

    def _remember_many(self) -> None:
        """Rows that have many pairs pending remember them, all in one call."""
        counts = self._pending.counts
        self._remember([row for row, count in enumerate(counts) if count >= MAX_PENDING])

    def _remember(self, rows: Sequence[int]) -> None:
        """Write the keys and values of the pairs that ``rows`` have pending, of which nobody asks
        what they predict. With one layer they depend on no other pair."""
        counts, lengths = self._pending.counts, self._cache.lengths
        new, starts = [counts[row] for row in rows], [lengths[row] for row in rows]
        if not sum(new):
            return
        (tokens, features), where = self._pending.joined(rows, starts)
        keys, values = self._timed(
            lambda: self.head.entries(self._target.embed(tokens), features, where)
        )
        self._cache.make_room(max(map(sum, zip(starts, new, strict=True))))
        parts = zip(rows, new, keys.split(new, 2), values.split(new, 2), strict=True)
        for row, count, own_keys, own_values in parts:
            self._cache.aim(slice(row, row + 1), count)
            self._cache.update(own_keys, own_values, 0)
            self._cache.advance(row, count)

    def _shown(self) -> list[int]:
        """How many committed pairs of each row a forward looks back on."""
        if self._window is None:
            return list(self._cache.lengths)
        return [min(length, self._sinks + self._window) for length in self._cache.lengths]

    def _feed(
        self,
        pairs: tuple[Tensor, Tensor],
        where: Tensor,
        mask: Tensor,
        num_fed: int,
        contrasts: int,
    ) -> HeadOutput:
        """Feed pairs behind the committed ones and the ``num_fed`` since. ``mask`` [B, N, S],
        additive, over those that are ``_shown`` and all that are not committed, its own N last."""
        rows, new = pairs[0].shape
        self._cache.aim(slice(0, rows), new, num_fed)
        edges = None
        if self._window is not None:
            edges = edges_of(self._cache.lengths, num_fed + new, self._sinks, self._window)
        seen = self._cache if edges is None else Excerpt(self._cache, edges)
        run = self.head if self._compiled is None else self._compiled
        return self._forward(run, pairs, where, mask[:, None], seen, contrasts)

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
