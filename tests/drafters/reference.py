"""What a draft head says, one path at a time: whole sequences, plain causal attention, no cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.experts import HeadOutput
from jakiro.drafters.feature import FeatureDrafter
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree


class PlainScores:
    """Scores without noise."""

    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        return (sharpness.logits * logits).log_softmax(-1).float()


class PathReference:
    """The head after ``ids`` (prompt and root), whose prompt has ``features`` [T, F]."""

    def __init__(
        self, drafter: FeatureDrafter, target: Target, ids: list[int], features: Tensor
    ) -> None:
        assert len(ids) == len(features) + 1
        self._head, self._target = drafter.head, target
        self._ids, self._features = ids, features
        self._scored = dict(drafter.head.named_buffers()).get("draft_ids")
        self._window, self._sinks = drafter._window, drafter._sinks
        self._sharpness = drafter._sharpness

    @torch.inference_mode()
    def after(self, path: list[int]) -> HeadOutput:
        """What the head says at the last node of ``path`` (tokens below the root; may be empty),
        [1, 1, ...]."""
        known = self._features[None]
        for length in range(len(path) + 1):
            tokens = torch.tensor([[*self._ids[1:], *path[:length]]])
            where = torch.arange(tokens.shape[1])[None]
            every = self._head(
                self._target.embed(tokens),
                known,
                where,
                self._visible(tokens.shape[1], max(1, length)),
                contrasts=self._head.config.contrast_levels,
            )
            out = every.at([tokens.shape[1] - 1])
            if length < len(path):
                carried = self._carried(out, path[length])[None, None]
                # Streams of nothing add nothing.
                room = known.shape[-1] - carried.shape[-1]
                known = torch.cat([known, F.pad(carried, (room, 0))], 1)
        return out

    def _visible(self, size: int, num_fed: int) -> Tensor:
        """[1, 1, size, size] bool: causal, and the last pair sees of the committed ones, all but
        ``num_fed``, those in the window and the sinks."""
        mask = torch.ones(size, size, dtype=torch.bool).tril()
        if self._window is not None:
            mask[-1, self._sinks : max(self._sinks, size - num_fed - self._window)] = False
        return mask[None, None]

    def _carried(self, out: HeadOutput, token: int) -> Tensor:
        """The feature [H] that a child is fed with: that of the expert behind it."""
        if out.experts is None:
            return out.next[0, 0]
        return out.experts.features[0, 0, self._expert(out, token)]

    def _expert(self, out: HeadOutput, token: int) -> int:
        """The expert with most of the mass of ``token``; of a union, who is first to name it when
        the experts name their best tokens one by one, the one with the larger gate first."""
        assert out.experts is not None
        features, weights = (part[0, 0] for part in out.experts)
        laws = torch.stack([self._law(feature).exp() for feature in features])
        if self._head.config.branches != "union":
            return int((weights * laws[:, token]).argmax())
        order = weights.argsort(descending=True).tolist()
        best = laws.argsort(-1, descending=True).tolist()
        named = [(best[expert][place], expert) for place in range(len(laws[0])) for expert in order]
        return next(expert for proposed, expert in named if proposed == token)

    def _law(self, feature: Tensor) -> Tensor:
        """[V]: log probabilities, among the tokens that are scored."""
        logits = self._target.lm_head(feature)
        if self._scored is not None:
            scored = torch.zeros_like(logits, dtype=torch.bool)
            scored[self._scored] = True
            logits = logits.masked_fill(~scored, -torch.inf)
        return logits.log_softmax(-1)

    @torch.inference_mode()
    def scores(self, path: list[int], last_level: int) -> Tensor:
        """[V]: log scores of the children of the last node of ``path`` in a tree of ``last_level``
        levels."""
        contrasts = min(self._head.config.contrast_levels, last_level - 1)
        last_fed = last_level - 1 - contrasts
        ahead = max(0, len(path) - last_fed)
        out = self.after(path[:last_fed] if ahead else path)
        if ahead or out.experts is None:
            law = self._law((out.next, *out.ahead)[ahead][0, 0])
        else:
            features, weights = (part[0, 0] for part in out.experts)
            laws = torch.stack([self._law(feature).exp() for feature in features])
            law = (weights[:, None] * laws).sum(0).log()
        return (self._sharpness[ahead].logits * law).log_softmax(-1)

    @torch.inference_mode()
    def expert_behind(self, path: list[int]) -> int:
        """Which single expert stands behind the last token of ``path``."""
        return self._expert(self.after(path[:-1]), path[-1])


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
