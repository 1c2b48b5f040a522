"""What the nodes fed last say of their children: draft logits, and the feature each child carries.

The gated sum gives a node one feature, shared by all its children. *Decoupled*, every active expert
keeps its own: the children come from the mixture ``m(x) = sum_j w_j softmax(W (h + E_j))(x)``, so
candidates of different experts merge and the gate shares the places out; and a child carries the
feature of the expert that explains it best, ``argmax_j w_j P_j(x)``. So siblings are continued from
different representations at every level (arXiv 2502.06282; how they compete is our reading).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from jakiro.drafters.base import DraftNoise
from jakiro.drafters.experts import Experts, HeadOutput
from jakiro.drafters.vocabulary import DraftVocabulary
from jakiro.errors import ConfigError
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.tree.grow import Frontier
from jakiro.tree.largest import largest
from jakiro.tree.token_tree import TokenTree


class Branches(ABC):
    """One level of fed nodes, R per row. Children are numbered as in the vocabulary, of D.
    ``sharpness``: of their logits."""

    def __init__(self, vocabulary: DraftVocabulary, sharpness: Sharpness) -> None:
        self._vocabulary, self._sharpness = vocabulary, sharpness

    @abstractmethod
    def scores(self, noise: DraftNoise, depth: int, width: int) -> Tensor:
        """Log scores [B, R, D] (float32) of children at ``depth``, ``width`` of which will be
        made."""

    @abstractmethod
    def carried(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Features [B, F, H] that the children ``tokens`` [B, F] of the nodes ``rows`` [B, F] are
        fed with."""

    @abstractmethod
    def chosen(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """[B, F]: which of the active experts stands behind each child; -1: all of them."""


class Sum(Branches):
    """One feature per node."""

    def __init__(
        self, features: Tensor, vocabulary: DraftVocabulary, sharpness: Sharpness = AS_SAID
    ) -> None:
        super().__init__(vocabulary, sharpness)
        self._features, self._logits = features, vocabulary.logits(features)

    def scores(self, noise: DraftNoise, depth: int, width: int) -> Tensor:
        return noise.scores(self._logits, depth, self._vocabulary.ids, self._sharpness)

    def carried(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return gathered(self._features, rows)

    def chosen(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return torch.full_like(tokens, -1)


class Decoupled(Branches):
    """One feature per node and active expert."""

    def __init__(
        self, experts: Experts, vocabulary: DraftVocabulary, sharpness: Sharpness = AS_SAID
    ) -> None:
        super().__init__(vocabulary, sharpness)
        self.experts = experts
        laws = vocabulary.logits(experts.features).float().log_softmax(-1)
        self._joint = laws + experts.weights.float().log()[..., None]

    def law(self) -> Tensor:
        """[B, R, D] float32: the log of the mixture."""
        return self._joint.logsumexp(-2)

    def scores(self, noise: DraftNoise, depth: int, width: int) -> Tensor:
        return noise.scores(self.law(), depth, self._vocabulary.ids, self._sharpness)

    def carried(self, tokens: Tensor, rows: Tensor) -> Tensor:
        batch = torch.arange(len(rows), device=rows.device)[:, None]
        return self.experts.features[batch, rows, self.chosen(tokens, rows)]

    def chosen(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return self.explained(tokens, rows).argmax(-1)

    def explained(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """``log w_j P_j(x)`` [B, F, K] of the children ``tokens`` of the nodes ``rows``."""
        batch = torch.arange(len(rows), device=rows.device)[:, None]
        return self._joint[batch, rows, :, tokens]


class Union(Decoupled):
    """The experts propose in turn, the one with the larger gate first, each its next best token,
    until there are enough different ones; a child carries the feature of who proposed it first."""

    def scores(self, noise: DraftNoise, depth: int, width: int) -> Tensor:
        joint = self._joint
        alone = noise.scores(joint.flatten(1, 2), depth, self._vocabulary.ids).view_as(joint)
        width = min(width, joint.shape[-1])
        self._proposed = largest(alone, width).indices
        # In the order of proposal: [B, R, W K].
        order = self.experts.weights.argsort(-1, descending=True)
        turns = self._proposed.gather(2, order[..., None].expand_as(self._proposed))
        turns = turns.transpose(-1, -2).flatten(-2)
        earlier = torch.ones(2 * turns.shape[-1:], dtype=torch.bool, device=turns.device).tril(-1)
        is_new = ~((turns[..., None] == turns[..., None, :]) & earlier).any(-1)
        is_taken = is_new & (is_new.cumsum(-1) <= width)
        # A token is taken at its first proposal; later ones must not undo that.
        taken = torch.zeros_like(joint[..., 0, :]).scatter_add_(-1, turns, is_taken.to(joint.dtype))
        return super().scores(noise, depth, width).masked_fill(taken == 0, -torch.inf)

    def chosen(self, tokens: Tensor, rows: Tensor) -> Tensor:
        batch = torch.arange(len(rows), device=rows.device)[:, None]
        found = self._proposed[batch, rows] == tokens[..., None, None]
        # The first place of each expert's list; behind its end where the token is not in it.
        rank = torch.where(found.any(-1), found.float().argmax(-1), found.shape[-1])
        turn = self.experts.weights.argsort(-1, descending=True).argsort(-1)[batch, rows]
        return (rank * rank.shape[-1] + turn).argmin(-1)


KINDS = {"decoupled": Decoupled, "union": Union}


class Watch:
    """Which expert stands behind every node of one draft, for people to see."""

    def __init__(self) -> None:
        self._levels: list[tuple[Branches, Frontier | None]] = []

    def note(self, nodes: Branches, frontier: Frontier | None) -> None:
        """The next level of fed ``nodes``; no ``frontier``: the roots."""
        self._levels.append((nodes, frontier))

    def experts(self, tree: TokenTree) -> list[list[int]]:
        """[B][N]: ``chosen`` of the nodes of ``tree``, whose tokens are still numbered as in the
        vocabulary; -1 at the root and below the levels noted."""
        found = torch.full_like(tree.tokens, -1)
        # Of every node its column in the frontier, if it was fed, and that of its parent.
        column, above = torch.zeros_like(tree.tokens), torch.zeros_like(tree.tokens)
        for depth, (nodes, frontier) in enumerate(self._levels):
            if frontier is not None:
                same = tree.tokens[:, :, None] == frontier.tokens[:, None]
                same = same & (above[:, :, None] == frontier.parent_rows[:, None])
                column = torch.where(tree.depth == depth, same.int().argmax(-1), column)
                above = column.gather(1, tree.parents.clamp_min(0))
            is_child = tree.depth == depth + 1
            # Only children are sure to be in the vocabulary, and their parents in the frontier.
            chosen = nodes.chosen(tree.tokens.where(is_child, 0), above.where(is_child, 0))
            found = torch.where(is_child, chosen, found)
        return found.tolist()


def branches(
    out: HeadOutput, kind: str, vocabulary: DraftVocabulary, sharpness: Sharpness
) -> Branches:
    """What the nodes of ``out`` say, by the ``branches`` of the head's config."""
    if out.experts is None:
        return Sum(out.next, vocabulary, sharpness)
    return KINDS[kind](out.experts, vocabulary, sharpness)


def sharpness_of(given: Sequence[float | Sequence[float]], count: int) -> list[Sharpness]:
    """Of ``count`` branches, as an option of a drafter says it: of each two numbers, or one for
    both; ``AS_SAID`` where it says nothing. Raises ``ConfigError``."""
    pairs = [each if isinstance(each, Sequence) else (each, each) for each in given]
    if len(pairs) > count or not all(
        len(pair) == 2 and all(0 < each < math.inf for each in pair) for pair in pairs
    ):
        raise ConfigError(
            f"sharpness must be at most {count} positive numbers with this head, one per branch, "
            f"or pairs of them, for logits and for noise; got {list(given)}"
        )
    return [*(Sharpness(*pair) for pair in pairs), *[AS_SAID] * (count - len(pairs))]


def gathered(features: Tensor, rows: Tensor) -> Tensor:
    """[B, F, H]: the entries ``rows`` [B, F] of ``features`` [B, R, H]."""
    return features.gather(1, rows[:, :, None].expand(-1, -1, features.shape[-1]))
