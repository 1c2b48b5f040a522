"""The one shape every draft has: a batch of token trees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Listed(NamedTuple):
    """A tree as numbers of the host, [B][N] each; ``valid`` is 1 or 0."""

    tokens: list[list[int]]
    parents: list[list[int]]
    valid: list[list[int]]
    depth: list[list[int]]


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A draft of every row. Node 0 is the root: the last committed token, not yet in the cache.

    Invariants: ``parents[:, 0] = -1``; ``parents[:, i] < i``; a valid node has a valid parent;
    valid siblings carry distinct tokens, unless they were drawn with replacement. The nodes of a
    row that are not valid can never be accepted: they are padding, or auxiliary tokens, fed below
    their parents like any other, whose logits a drafter wants to see.
    """

    tokens: Tensor
    """[B, N] int64."""
    parents: Tensor
    """[B, N] int64, -1 at the root."""
    valid: Tensor
    """[B, N] bool; the root is always valid."""
    scores: Tensor | None = None
    """[B, N] float32: summed log score of the path, for policies and statistics."""
    laws: Tensor | None = None
    """[B, M, V]: the law that the children of the m-th expanded node were drawn from, one after
    the other in order of their indices. None: no node was drawn, the tree is a list of
    candidates."""
    expanded: Tensor | None = None
    """[M] int64, with ``laws``: the expanded nodes, the same in every row."""

    @classmethod
    def root_only(cls, roots: Tensor) -> TokenTree:
        """The empty draft: ``roots`` [B] and nothing below; plain decoding."""
        tokens = roots[:, None]
        return cls(tokens, torch.full_like(tokens, -1), torch.ones_like(tokens, dtype=torch.bool))

    def padded(self, num_nodes: int) -> TokenTree:
        """Tokens, parents and validity with nodes that can never be accepted up to ``num_nodes``,
        children of the root."""
        room = num_nodes - self.num_nodes
        if not room:
            return self
        tokens, parents, valid = (
            F.pad(each, (0, room)) for each in (self.tokens, self.parents, self.valid)
        )
        return TokenTree(tokens, parents, valid)

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_nodes(self) -> int:
        """N, the root included."""
        return self.tokens.shape[1]

    @cached_property
    def ancestors(self) -> Tensor:
        """[B, N, N] bool: ``[b, i, j]`` is True when j is i or an ancestor of i."""
        size = self.num_nodes
        if size == 1:
            return torch.ones_like(self.valid)[:, None]
        # A node sees itself and all that its parent sees: x = 1 + P x, whole numbers throughout.
        links = torch.zeros(self.num_rows, size, size, device=self.tokens.device)
        links.scatter_(2, self.parents.clamp_min(0)[:, :, None], -1.0)
        own = torch.eye(size, device=links.device).expand_as(links)
        # The diagonal is taken to be 1, whatever the root's own link says there.
        seen: Tensor = torch.linalg.solve_triangular(links, own, upper=False, unitriangular=True)
        return seen.bool()

    @cached_property
    def depth(self) -> Tensor:
        """[B, N] int64: edges between the root and each node."""
        return self.ancestors.sum(-1) - 1

    @cached_property
    def listed(self) -> Listed:
        """On the host, in one transfer."""
        return Listed(*torch.stack([self.tokens, self.parents, self.valid, self.depth]).tolist())

    @cached_property
    def num_levels(self) -> int:
        """Of the deepest node of any row; padding does not count."""
        rows = zip(self.listed.depth, self.listed.valid, strict=True)
        return max(max(compress(depth, valid)) for depth, valid in rows)

    @property
    def is_chain(self) -> bool:
        """Whether every valid node hangs below the one before it."""
        before = torch.arange(-1, self.num_nodes - 1, device=self.parents.device)
        return not bool(((self.parents != before) & self.valid).any())

    @cached_property
    def has_children(self) -> Tensor:
        """[B, N] bool: the root, and every node that is a parent; padding counts."""
        parents = self.parents.clamp_min(0)
        return torch.zeros_like(self.valid).scatter(1, parents, torch.ones_like(self.valid))

    @cached_property
    def law_index(self) -> Tensor:
        """[B, N] int64: which of ``laws`` the children of a node were drawn from; means nothing at
        a node that was not expanded."""
        assert self.expanded is not None, "the nodes of this tree were not drawn"
        numbers = torch.arange(len(self.expanded), device=self.expanded.device)
        index = self.tokens.new_zeros(self.num_nodes).scatter(0, self.expanded, numbers)
        return index.expand_as(self.tokens)

    def check(self, has_twins: bool = False) -> None:
        """Raise ``AssertionError`` if an invariant is broken; ``has_twins``: siblings may be alike.
        For tests and debugging."""
        rows = zip(self.tokens.tolist(), self.parents.tolist(), self.valid.tolist(), strict=True)
        for tokens, parents, valid in rows:
            assert parents[0] == -1 and valid[0], "node 0 must be a valid root"
            children: set[tuple[int, int]] = set()
            for node, parent in enumerate(parents[1:], start=1):
                assert 0 <= parent < node, f"node {node} comes before its parent {parent}"
                if valid[node]:
                    assert valid[parent], f"valid node {node} hangs below padding {parent}"
                    is_new = (parent, tokens[node]) not in children
                    assert is_new or has_twins, f"twin of node {node}"
                    children.add((parent, tokens[node]))
