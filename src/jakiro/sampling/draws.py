"""What is drawn besides the target's choices: sampled drafts, and the coins of their rules.

Such a rule keeps the target's law only if the draft is independent of the coins and of the noise
that the choices use. Each has a stream of its own (``Purpose``), keyed by the length of the text
at the cycle's start as well: no two cycles of a request share it, so nothing is drawn twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.sampling.nodes import AS_SAID, Nodes, Sharpness
from jakiro.sampling.noise import Purpose, gumbel, position_keys, purpose_keys, uniform
from jakiro.tree import grow
from jakiro.tree.largest import largest
from jakiro.tree.token_tree import TokenTree


class DraftDraws(ABC):
    """Draws the nodes of drafts, and remembers the laws they were drawn from.

    The law of a node's children is the processed draft law (bias, ``min_new_tokens``, temperature
    and filters as the target has them), the noise that of their level and their parent's column.
    Greedy rows get their candidates without noise. This is the ``DraftNoise`` and the ``choose`` of
    a drafter; every draft ends with ``seal``.
    """

    words: ClassVar[str]
    """How the children of a node are drawn."""

    def __init__(
        self, process: Callable[[Tensor, int, Tensor | None], Nodes], vocab_size: int
    ) -> None:
        self._process, self._vocab_size = process, vocab_size
        self._nodes: Nodes
        self._ids: Tensor | None = None
        self._laws: dict[int, Tensor] = {}

    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        """Log law [B, K, D] of children at ``depth`` >= 1, from draft logits [B, K, D] of the
        tokens ``ids``. How sure the head is of the choice (``sharpness``) is no part of it."""
        self._nodes, self._ids = self._process(logits, depth, ids), ids
        return self._nodes.law().log()

    def choose(
        self, scores: Tensor, above: grow.Nodes, counts: Sequence[int], level: int
    ) -> tuple[Tensor, grow.Nodes]:
        """Children as ``grow.Choose`` wants them."""
        law = scores.exp()
        self._laws[level] = law if self._ids is None else self._widened(law, self._ids)
        greedy = self._nodes.settings.greedy
        if isinstance(greedy, slice):
            return grow.best(scores, above, counts, level)
        columns = torch.arange(law.shape[1], device=law.device)
        keys = position_keys(purpose_keys(self._nodes.keys, Purpose.DRAFT), self._nodes.lengths)
        keys = position_keys(position_keys(keys, torch.full_like(keys, level))[:, None], columns)
        tokens, made = self._drawn(law, above, counts, keys)
        if greedy is not None:
            listed, of_list = grow.best(scores, above, counts, level)
            tokens[greedy] = listed[greedy]
            for each, instead in zip(made, of_list, strict=True):
                each[greedy] = instead[greedy].to(each.dtype)
        return tokens, made

    def _widened(self, law: Tensor, ids: Tensor) -> Tensor:
        """[B, K, V] from a law [B, K, D]: other tokens are never drawn."""
        wide = law.new_zeros(*law.shape[:-1], self._vocab_size)
        return wide.index_copy_(-1, ids, law)

    @abstractmethod
    def _drawn(
        self, law: Tensor, above: grow.Nodes, counts: Sequence[int], keys: Tensor
    ) -> tuple[Tensor, grow.Nodes]:
        """Children of nodes that have ``law`` [B, K, D], by the noise of ``keys`` [B, K]."""

    def seal(self, tree: TokenTree) -> TokenTree:
        """``tree`` with the laws its nodes were drawn from.

        Raises:
            ConfigError: nodes were chosen otherwise than by ``choose``.
        """
        found, self._laws = self._laws, {}
        if tree.num_nodes == 1:
            return tree
        depth = tree.depth[0]
        is_level = torch.equal(tree.depth, depth.expand_as(tree.depth))
        expanded, laws = [], []
        for level in range(1, int(depth.max()) + 1):
            nodes = (depth == level - 1).nonzero()[:, 0]
            if level not in found or not is_level:
                break
            if len(nodes) != found[level].shape[1]:
                nodes = nodes[tree.has_children[0, nodes]]
            if len(nodes) != found[level].shape[1]:
                break
            expanded.append(nodes)
            laws.append(found[level])
        else:
            return replace(tree, laws=torch.cat(laws, 1), expanded=torch.cat(expanded))
        raise ConfigError(
            "this draft is no sample: its nodes were not all drawn as the request asks, or how "
            "many a level has depends on them; use the rule match, or another drafter or tree"
        )


class WithoutReplacement(DraftDraws):
    """Siblings are successive draws, each from what the ones before it have left.

    The Gumbel-top-k trick: the ``k`` largest of ``log law + noise``, in descending order. Nodes of
    different parents compete by noise of whole paths (stochastic beam search, arXiv 1903.06059):
    the largest of a node's children has the value of the node, the others are conditioned on it.
    """

    words = "drawn without replacement"

    def _drawn(
        self, law: Tensor, above: grow.Nodes, counts: Sequence[int], keys: Tensor
    ) -> tuple[Tensor, grow.Nodes]:
        steps = law.log()
        size = min(max(counts), law.shape[-1])
        noise = gumbel(keys, law.shape[-1] if self._ids is None else self._ids)
        found = largest(steps + noise.to(law.dtype), size)
        scores = above.scores[:, :, None] + steps.gather(2, found.indices)
        noisy, value = above.scores[:, :, None] + found.values, above.values[:, :, None]
        # -log(e^-value - e^-largest + e^-noisy), without cancellation.
        excess = value - noisy + torch.log1p(-(noisy - noisy[:, :, :1]).exp())
        values = value - excess.clamp_min(0) - F.softplus(-excess.abs())
        values = values.masked_fill(scores == -torch.inf, -torch.inf)
        return _padded(found.indices, scores, values, max(counts))


class WithReplacement(DraftDraws):
    """Siblings are independent draws from one law, so some of them are alike."""

    words = "drawn with replacement"

    def _drawn(
        self, law: Tensor, above: grow.Nodes, counts: Sequence[int], keys: Tensor
    ) -> tuple[Tensor, grow.Nodes]:
        tokens = _picked(law, uniform(keys, max(counts)))
        scores = above.scores[:, :, None] + law.gather(2, tokens).log()
        return tokens, grow.Nodes(scores, scores)


class BestAndOne(DraftDraws):
    """Of n siblings the first n - 1 are the most probable tokens, and the last is drawn from the
    rest."""

    words = "the most probable, and one drawn from the rest"

    def _drawn(
        self, law: Tensor, above: grow.Nodes, counts: Sequence[int], keys: Tensor
    ) -> tuple[Tensor, grow.Nodes]:
        size = min(max(counts), law.shape[-1])
        tops = largest(law, size)
        last = torch.tensor(counts, device=law.device)[:, None] - 1
        ranks = torch.arange(size, device=law.device)
        rest = law.scatter(2, tops.indices, tops.values.masked_fill(ranks < last, 0))
        one = _picked(rest, uniform(keys, 1))
        tokens = torch.where(ranks == last, one, tops.indices)
        chances = torch.where(ranks == last, rest.gather(2, one), tops.values)
        scores = above.scores[:, :, None] + chances.log()
        return _padded(tokens, scores, scores, max(counts))


def _picked(law: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [B, K, W]: independent draws from ``law`` [B, K, V] (any scale), one for each of
    ``uniforms`` [B, K, W]."""
    total = law.double().cumsum(-1)
    places = torch.searchsorted(total, uniforms * total[:, :, -1:], right=True)
    return places.clamp_max(law.shape[-1] - 1)


def _padded(
    tokens: Tensor, scores: Tensor, values: Tensor, width: int
) -> tuple[Tensor, grow.Nodes]:
    """``width`` children of each node, where the vocabulary may have fewer tokens."""
    missing = (0, width - tokens.shape[-1])
    scores, values = (F.pad(each, missing, value=-torch.inf) for each in (scores, values))
    return F.pad(tokens, missing), grow.Nodes(scores, values)


@dataclass(frozen=True, eq=False)
class RuleDraws:
    """The randomness of a verdict. Nothing is computed before it is asked for."""

    keys: Tensor
    """[B] int64: the noise keys of the requests."""
    lengths: Tensor
    """[B] int64: absolute position of the token chosen at the root."""

    def coins(self, num_nodes: int) -> Tensor:
        """[B, N] float64: a uniform number of its own for every node."""
        keys = position_keys(purpose_keys(self.keys, Purpose.ACCEPT), self.lengths)
        return uniform(keys, num_nodes)

    def draw(self, probs: Tensor, depth: Tensor) -> Tensor:
        """[B]: a token from each row of ``probs`` [B, V] (any scale), by the noise of the choices
        at ``depth`` [B]. No other choice of the emitted text uses that noise."""
        noise = gumbel(position_keys(self.keys, self.lengths + depth), probs.shape[-1])
        return (probs.double().log() + noise).argmax(-1)
