"""Grow trees from a drafter's scores. What a score means is the caller's business.

A grower asks for the children of a frontier through ``expand`` and never sees a model: the same
code grows the trees of every drafter that scores a vocabulary, noise-aware or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.tree.shapes import TreePlan
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
"""Log scores [B, K, V] (float32) of the children of every frontier node. None: no row wants them,
the tree ends here."""


@dataclass(eq=False)
class _Pool:
    """All nodes made so far, in creation order; parents are pool indices, -1 for the root."""

    tokens: list[Tensor]
    parents: list[Tensor]
    scores: list[Tensor]

    def add(self, tokens: Tensor, parents: Tensor, scores: Tensor) -> None:
        """Append nodes [B, M]."""
        self.tokens.append(tokens)
        self.parents.append(parents)
        self.scores.append(scores)


def grow(
    plan: TreePlan, roots: Tensor, root_scores: Tensor, expand: Expand, depth_caps: list[int]
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
    build = _static if plan.kind == "static" else _dynamic
    pool = build(plan, depth, root_scores, expand, caps)
    return _rerank(roots, pool, plan.budget)


def _children(scores: Tensor, width: int, level: int, caps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and tokens [B, K, width] of the best children at ``level``; -inf in rows with a
    lower cap and where the vocabulary has fewer tokens than that."""
    missing = max(0, width - scores.shape[-1])
    best = scores.topk(width - missing, dim=-1)
    values = best.values
    if caps is not None:
        values = values.masked_fill((caps < level)[:, None, None], -torch.inf)
    if not missing:
        return values, best.indices
    return F.pad(values, (0, missing), value=-torch.inf), F.pad(best.indices, (0, missing))


def _dynamic(
    plan: TreePlan, depth: int, root_scores: Tensor, expand: Expand, caps: Tensor | None
) -> _Pool:
    """EAGLE-2: expand the ``width`` best nodes of each level; a chain is the width-1 case."""
    pool, width = _Pool([], [], []), plan.width
    scores, tokens = _children(root_scores[:, None], width, 1, caps)
    scores, tokens = scores[:, 0], tokens[:, 0]
    pool.add(tokens, torch.full_like(tokens, -1), scores)
    chosen, parent_rows = torch.arange(width, device=tokens.device), torch.zeros_like(tokens)
    chosen, first = chosen.expand_as(tokens), 0
    for level in range(1, depth):
        found = expand(Frontier(tokens, parent_rows, level))
        if found is None:
            break
        steps, children = _children(found, width, level + 1, caps)
        below, made = (scores[:, :, None] + steps).flatten(1), children.flatten(1)
        pool.add(made, (chosen + first).repeat_interleave(width, dim=1), below)
        first += width if level == 1 else width * width
        if level + 1 < depth:
            scores, chosen = below.topk(width, dim=1)
            parent_rows, tokens = chosen // width, made.gather(1, chosen)
    return pool


def _static(
    plan: TreePlan, depth: int, root_scores: Tensor, expand: Expand, caps: Tensor | None
) -> _Pool:
    """A fixed shape: only nodes that have children are expanded, each once."""
    pool = _Pool([], [], [])
    rows, device = len(root_scores), root_scores.device
    number = {(): -1} | {path: i for i, path in enumerate(plan.paths)}
    columns: dict[tuple[int, ...], int] = {(): 0}
    found: Tensor | None = root_scores[:, None]
    above = torch.zeros(rows, 1, device=device)
    for level in range(1, depth + 1):
        if found is None:
            break
        paths = [path for path in plan.paths if len(path) == level]
        steps, children = _children(found, plan.width, level, caps)
        column = torch.tensor([columns[path[:-1]] for path in paths], device=device)
        rank = torch.tensor([path[-1] for path in paths], device=device)
        scores = above[:, column] + steps[:, column, rank]
        parents = torch.tensor([number[path[:-1]] for path in paths], device=device)
        tokens = children[:, column, rank]
        pool.add(tokens, parents.expand(rows, -1), scores)
        inner = [i for i, path in enumerate(paths) if any(p[:-1] == path for p in plan.paths)]
        if level == depth or not inner:
            break
        chosen = torch.tensor(inner, device=device)
        parent_rows = column[chosen].expand(rows, -1)
        found = expand(Frontier(tokens[:, chosen], parent_rows, level))
        above = scores[:, chosen]
        columns = {paths[i]: new for new, i in enumerate(inner)}
    return pool


def _rerank(roots: Tensor, pool: _Pool, budget: int) -> TokenTree:
    """The ``budget`` best nodes of the pool in creation order, below their roots.

    A child never scores above its parent and is created after it, so a *stable* descending sort
    keeps the selection closed under parents even when scores tie.
    """
    tokens, parents = torch.cat(pool.tokens, 1), torch.cat(pool.parents, 1)
    scores = torch.cat(pool.scores, 1).float()
    if tokens.shape[1] > budget:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        kept = order[:, :budget].sort(dim=1).values
        tokens, scores = tokens.gather(1, kept), scores.gather(1, kept)
        wanted = parents.gather(1, kept)
        parents = torch.where(wanted < 0, -1, torch.searchsorted(kept, wanted.clamp_min(0)))
    valid = scores > -torch.inf
    rootwise = torch.ones_like(roots[:, None])
    return TokenTree(
        tokens=torch.cat([roots[:, None], tokens], 1),
        parents=torch.cat([-rootwise, parents + 1], 1),
        valid=torch.cat([rootwise.bool(), valid], 1),
        scores=torch.cat([torch.zeros_like(scores[:, :1]), scores], 1),
    )
