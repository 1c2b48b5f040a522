"""Grow trees from a drafter's scores. What a score means is the caller's business.

A grower asks for the children of a frontier through ``expand`` and never sees a model: the same
code grows the trees of every drafter that scores a vocabulary, noise-aware or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.tree.largest import largest
from jakiro.tree.numbers import counting
from jakiro.tree.shapes import Path, TreePlan
from jakiro.tree.token_tree import TokenTree


@dataclass(frozen=True, eq=False)
class Frontier:
    """The nodes of one level that are to be expanded.

    ``tokens`` [B, K]; ``parent_rows`` [B, K]: for each node the column of its parent in the
    frontier before (all 0 on level 1, whose parent is the root); ``depth``: level of these nodes.
    """

    tokens: Tensor
    parent_rows: Tensor
    depth: int


Expand = Callable[[Frontier], Tensor | None]
"""Log scores [B, K, V] of the children of every frontier node. None: no row wants them, the tree
ends here."""


class Nodes(NamedTuple):
    """What ``choose`` gives and takes, [B, K, W] for children, [B, K] for their parents."""

    scores: Tensor
    """Summed log score of the path; -inf: there is no such node."""
    values: Tensor
    """By what nodes of one level compete for places: the scores, unless they are drawn."""


Choose = Callable[[Tensor, Nodes, Sequence[int], int], tuple[Tensor, Nodes]]
"""Takes children: from log scores [B, K, V] below K parents and those parents, at least
``counts[k]`` children of the k-th, at a level >= 1: tokens [B, K, W] and their ``Nodes``, W being
the largest count. The child of rank 0 comes first; what stands behind a parent's count is not
used."""


def best(scores: Tensor, above: Nodes, counts: Sequence[int], level: int) -> tuple[Tensor, Nodes]:
    """The children of the highest scores, in descending order."""
    width = max(counts)
    missing = max(0, width - scores.shape[-1])
    found = largest(scores, width - missing)
    tokens, total = found.indices, above.scores[:, :, None] + found.values
    if missing:  # the vocabulary has fewer tokens than a parent has places
        tokens, total = F.pad(tokens, (0, missing)), F.pad(total, (0, missing), value=-torch.inf)
    return tokens, Nodes(total, total)


@dataclass(eq=False)
class _Pool:
    """All nodes made so far, in creation order. Parents are numbered like them from 1, 0 is the
    root."""

    tokens: list[Tensor]
    parents: list[Tensor]
    scores: list[Tensor]

    def add(self, tokens: Tensor, parents: Tensor, scores: Tensor) -> None:
        """Append nodes [B, M]."""
        self.tokens.append(tokens)
        self.parents.append(parents)
        self.scores.append(scores)


def grow(
    plan: TreePlan,
    roots: Tensor,
    root_scores: Tensor,
    expand: Expand,
    depth_caps: list[int],
    choose: Choose = best,
) -> TokenTree:
    """The tree of ``plan`` below ``roots`` [B].

    ``root_scores`` [B, V] score level 1. No node lies deeper than its row's cap; rows whose cap is
    smaller than the tree get padding. Candidates of score -inf are never nodes.
    """
    depth = min(plan.depth, max(depth_caps))
    if depth < 1:
        return TokenTree.root_only(roots)
    # Few drafts meet a cap; those that do not are spared the masking of every level.
    is_capped = min(depth_caps) < depth
    caps = torch.tensor(depth_caps, device=roots.device) if is_capped else None

    def within(
        scores: Tensor, above: Nodes, counts: Sequence[int], level: int
    ) -> tuple[Tensor, Nodes]:
        tokens, made = choose(scores, above, counts, level)
        if caps is None:
            return tokens, made
        is_below = (caps < level)[:, None, None]
        return tokens, Nodes(*(each.masked_fill(is_below, -torch.inf) for each in made))

    pool = _GROWERS[plan.kind](plan, depth, root_scores, expand, within)
    return _rerank(roots, pool, plan.budget)


def _root(root_scores: Tensor) -> tuple[Tensor, Nodes]:
    """The scores below the root, and the root, as a level of one node."""
    nothing = root_scores.new_zeros(len(root_scores), 1)
    return root_scores[:, None], Nodes(nothing, nothing)


def _dynamic(
    plan: TreePlan, depth: int, root_scores: Tensor, expand: Expand, choose: Choose
) -> _Pool:
    """EAGLE-2: expand the ``width`` best nodes of each level; a chain is the width-1 case.

    It ends at a level that the text hardly reaches, and above one none of whose nodes could be
    kept: descendants score no higher than the nodes they come from and are made later.
    """
    width = plan.width
    tokens, made = choose(*_root(root_scores), [width], 1)
    tokens, scores = tokens[:, 0], made.scores[:, 0]
    parent_rows = torch.zeros_like(tokens)
    pool = _Pool([tokens], [parent_rows], [scores])
    # Of each level the places of the nodes that are expanded; of the first level all.
    expanded = [counting(width, tokens.device).expand_as(tokens)]
    for level in range(1, depth):
        if plan.reach and float(scores.exp().sum(1).mean()) < plan.reach:
            break
        if _is_beaten(scores, pool.scores, plan.budget):
            break
        found = expand(Frontier(tokens, parent_rows, level))
        if found is None:
            break
        children, made = choose(found, Nodes(scores, scores), [width] * width, level + 1)
        below, tokens = made.scores.flatten(1), children.flatten(1)
        pool.tokens.append(tokens)
        pool.scores.append(below)
        if level + 1 < depth:
            scores, chosen = below.topk(width, dim=1)
            parent_rows, tokens = chosen // width, tokens.gather(1, chosen)
            expanded.append(chosen)
    if num_fed := len(pool.tokens) - 1:
        firsts = _firsts(width, num_fed, tokens.device)
        numbers = torch.cat(expanded[:num_fed], 1) + firsts
        pool.parents.append(numbers.repeat_interleave(width, dim=1))
    return pool


def _is_beaten(scores: Tensor, made: Sequence[Tensor], budget: int) -> bool:
    """Whether in every row ``budget`` of the nodes ``made`` [B, ..] are as good as the best of
    ``scores`` [B, K]."""
    if sum(each.shape[1] for each in made) < budget:
        return False
    bar = torch.cat(list(made), 1).topk(budget, dim=1).values[:, -1:]
    return not bool((scores > bar).any())


@lru_cache
def _firsts(width: int, num_levels: int, device: torch.device) -> Tensor:
    """[L W]: for each of the W expanded nodes of L levels, the number of its level's first node."""
    ends = accumulate([width] + [width * width] * (num_levels - 2), initial=1)
    return torch.tensor([first for first in ends for _ in range(width)], device=device)[
        : num_levels * width
    ]


def _beam(plan: TreePlan, depth: int, root_scores: Tensor, expand: Expand, choose: Choose) -> _Pool:
    """Of each level the ``width`` nodes of the highest values stay, and all of them are
    expanded."""
    pool, width = _Pool([], [], []), plan.width
    found: Tensor | None
    found, above = _root(root_scores)
    for level in range(1, depth + 1):
        if found is None:
            break
        children, made = choose(found, above, [width] * found.shape[1], level)
        values, kept = made.values.flatten(1).topk(width, dim=1)
        tokens, parent_rows = children.flatten(1).gather(1, kept), kept // width
        above = Nodes(made.scores.flatten(1).gather(1, kept), values)
        first = 0 if level == 1 else 1 + (level - 2) * width
        pool.add(tokens, parent_rows + first, above.scores)
        if level < depth:
            found = expand(Frontier(tokens, parent_rows, level))
    return pool


def _static(
    plan: TreePlan, depth: int, root_scores: Tensor, expand: Expand, choose: Choose
) -> _Pool:
    """A fixed shape: only nodes that have children are expanded, each once."""
    pool = _Pool([], [], [])
    rows, device = len(root_scores), root_scores.device
    number = {path: i for i, path in enumerate([(), *plan.paths])}
    # Paths are sorted, so the last child of each has the highest rank.
    fans = {path[:-1]: path[-1] + 1 for path in plan.paths}
    columns: dict[Path, int] = {(): 0}
    found: Tensor | None
    found, above = _root(root_scores)
    for level in range(1, depth + 1):
        if found is None:
            break
        paths = [path for path in plan.paths if len(path) == level]
        children, made = choose(found, above, [fans[path] for path in columns], level)
        column = torch.tensor([columns[path[:-1]] for path in paths], device=device)
        rank = torch.tensor([path[-1] for path in paths], device=device)
        parents = torch.tensor([number[path[:-1]] for path in paths], device=device)
        tokens = children[:, column, rank]
        nodes = Nodes(*(each[:, column, rank] for each in made))
        pool.add(tokens, parents.expand(rows, -1), nodes.scores)
        inner = [i for i, path in enumerate(paths) if path in fans]
        if level == depth or not inner:
            break
        chosen = torch.tensor(inner, device=device)
        parent_rows = column[chosen].expand(rows, -1)
        found = expand(Frontier(tokens[:, chosen], parent_rows, level))
        above = Nodes(*(each[:, chosen] for each in nodes))
        columns = {paths[i]: new for new, i in enumerate(inner)}
    return pool


_GROWERS = {"chain": _dynamic, "static": _static, "dynamic": _dynamic, "beam": _beam}


def _rerank(roots: Tensor, pool: _Pool, budget: int) -> TokenTree:
    """The ``budget`` best nodes of the pool in creation order, below their roots.

    A child never scores above its parent and is created after it, so a *stable* descending sort
    keeps the selection closed under parents even when scores tie.
    """
    tokens = torch.cat([roots[:, None], *pool.tokens], 1)
    parents, scores = torch.cat(pool.parents, 1), torch.cat(pool.scores, 1).float()
    if scores.shape[1] > budget:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        kept = order[:, :budget].sort(dim=1).values
        numbers = F.pad(kept + 1, (1, 0))
        parents = torch.searchsorted(numbers, parents.gather(1, kept))
        tokens, scores = tokens.gather(1, numbers), scores.gather(1, kept)
    scores = F.pad(scores, (1, 0))
    return TokenTree(tokens, F.pad(parents, (1, 0), value=-1), scores > -torch.inf, scores)
