"""Attention over a part of the cache drafts for long contexts: the first tokens (sinks) and the
last ones, as StreamingLLM reads (arXiv 2309.17453) and MagicDec drafts (arXiv 2408.11049)."""

from __future__ import annotations

import torch

from jakiro.cache.excerpt import Excerpt, edges_of
from jakiro.cache.kv_cache import KVCache
from jakiro.cache.mask import additive, positions, tree_mask
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import ConfigError
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.target.view import View, check_masks
from jakiro.tree.token_tree import TokenTree

MOST_RECENT = 256


class SparseKV(SelfDrafter):
    """Drafts with the first ``sinks`` tokens and the last ``recent`` ones before the root (None: a
    sixteenth of the context, at most 256), and with all of a text that is no longer than both.

    Raises ``TargetRefused`` where the target does not take masks, ``ConfigError``."""

    name = "sparse_kv"

    def __init__(self, target: Target, sinks: int = 4, recent: int | None = None) -> None:
        if recent is None:
            recent = max(1, min(MOST_RECENT, target.context_length // 16))
        if sinks < 0 or recent < 1:
            raise ConfigError(
                f"sinks must be at least 0 and recent at least 1, got {sinks} and {recent}"
            )
        check_masks(target)
        super().__init__(_Sparse(target, sinks, recent))


class _Sparse(View):
    def __init__(self, target: Target, sinks: int, recent: int) -> None:
        super().__init__(target, {})
        self._sinks, self._recent = sinks, recent

    @torch.no_grad()
    def verify(
        self,
        tree: TokenTree,
        cache: KVCache,
        needs: FeatureSpec = NO_FEATURES,
        num_known: int = 0,
    ) -> TargetOutput:
        """See ``Target.verify``; positions are those of the whole text."""
        starts = cache.lengths[: tree.num_rows]
        edges = edges_of(starts, tree.num_nodes, self._sinks, self._recent)
        if edges is None:
            return super().verify(tree, cache, needs, num_known)
        span = cache.aim(slice(0, tree.num_rows), tree.num_nodes - num_known, num_known)
        masks = {}
        for name, window in self.windows.items():
            mask = tree_mask(tree, starts, span, window)[:, num_known:]
            masks[name] = additive(edges.of_mask(mask), self.dtype)
        where = positions(tree, starts)[:, num_known:].clamp_max(self.context_length - 1)
        mask_of_all = masks if len(masks) > 1 else next(iter(masks.values()))
        return self.forward(
            tree.tokens[:, num_known:], where, mask_of_all, Excerpt(cache, edges), needs
        )
