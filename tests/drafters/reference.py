"""What a draft head says, one path at a time: whole sequences, plain causal attention, no cache."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.feature import FeatureDrafter
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree


class PlainScores:
    """Scores without noise."""

    def scores(self, logits: Tensor, depth: int) -> Tensor:
        return logits.log_softmax(-1).float()


class PathReference:
    """The head after ``ids`` (prompt and root), whose prompt has ``features`` [T, H]."""

    def __init__(
        self, drafter: FeatureDrafter, target: Target, ids: list[int], features: Tensor
    ) -> None:
        assert len(ids) == len(features) + 1
        self._head, self._target = drafter.head, target
        self._ids, self._features = ids, features
        self._contrast = drafter.head.config.contrast_levels

    @torch.inference_mode()
    def after(self, path: list[int]) -> tuple[Tensor, Tensor | None]:
        """Both branches [H] at the last node of ``path`` (tokens below the root; may be empty)."""
        known = self._features[None]
        for length in range(len(path) + 1):
            tokens = torch.tensor([[*self._ids[1:], *path[:length]]])
            where = torch.arange(tokens.shape[1])[None]
            out = self._head(self._target.embed(tokens), known, where, contrasts=self._contrast)
            known = torch.cat([known, out.next[:, -1:]], 1)
        return out.next[0, -1], out.ahead[0][0, -1] if out.ahead else None

    @torch.inference_mode()
    def scores(self, path: list[int], last_level: int) -> Tensor:
        """[V]: log probabilities of the children of the last node of ``path`` in a tree of
        ``last_level`` levels."""
        next_feature, _ = self.after(path)
        if self._contrast and len(path) + 1 == last_level and path:
            _, feature = self.after(path[:-1])
            assert feature is not None
            next_feature = feature
        return self._target.lm_head(next_feature).log_softmax(-1)


def begun(
    drafter: FeatureDrafter, target: Target, prompts: list[list[int]]
) -> tuple[list[int], list[PathReference]]:
    """Prefills every prompt; returns the roots and a reference per row."""
    roots, references = [], []
    for ids in prompts:
        cache = target.new_cache()
        with torch.inference_mode():
            out = target.prefill(ids, cache, cache.admit(), drafter.needs)
            assert out.features is not None
            drafter.begin(ids, out.features[0])
        roots.append(int(out.logits[0, -1].argmax()))
        references.append(PathReference(drafter, target, [*ids, roots[-1]], out.features[0]))
    return roots, references


def request(
    roots: list[int], prompts: list[list[int]], plan: TreePlan, caps: list[int] | None = None
) -> DraftRequest:
    lengths = [len(ids) for ids in prompts]
    caps = caps or [plan.depth] * len(roots)
    return DraftRequest(torch.tensor(roots), lengths, caps, plan, PlainScores())


def paths(tree: TokenTree, row: int) -> dict[int, list[int]]:
    """Tokens from below the root to every valid node."""
    found: dict[int, list[int]] = {0: []}
    parents, tokens = tree.parents[row].tolist(), tree.tokens[row].tolist()
    for node in range(1, tree.num_nodes):
        if tree.valid[row, node]:
            found[node] = [*found[parents[node]], tokens[node]]
    return found
