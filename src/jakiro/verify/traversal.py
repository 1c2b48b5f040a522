"""Traversal verification: a drawn tree is judged from its leaves upwards."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.descent import excess, without
from jakiro.verify.match import match


def traversal(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Accept the first leaf that passes, with its whole path (promise: in_law).

    Every node v has a weight ``s_v``, 1 at the root, and laws of its own, ``target`` and ``draft``.
    Go down to the first leaf c that is left, with ``s_c = min(1, s_v target(c) / draft(c))`` for
    each child c of v, and accept it with probability ``s_c``; the next token is drawn from its
    target. Else c is removed: with ``R`` the mass of ``[s_v target - draft]_+`` at its parent v,
    ``s_v <- R / (R + 1 - s_v)``, the target becomes that excess, normalised, and the draft loses c
    and is normalised again; go on from v, which may be a leaf by now. (arXiv 2505.12398.) On a
    chain this is block verification, on one level recursive rejection.
    """
    if tree.num_nodes == 1:
        return match(tree, nodes)
    state = _State(tree, nodes)
    rows = state.rows
    coins = nodes.draws.coins(tree.num_nodes)
    here, is_open = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
    while True:
        children = state.is_left & (tree.parents == here[:, None])
        is_leaf, child = ~children.any(-1), children.int().argmax(-1)
        # The root has weight 1: without children it is accepted.
        is_open = is_open & ~(is_leaf & (coins[rows, here] < state.weight[rows, here]))
        if not is_open.any():
            break
        down, up = is_open & ~is_leaf, is_open & is_leaf
        state.enter(rows[down], here[down], child[down])
        parent = tree.parents[rows, here]
        state.remove(rows[up], parent[up], here[up])
        here = torch.where(down, child, torch.where(up, parent, here))
    drawn = nodes.draws.draw(state.target[rows, here], tree.depth[rows, here])
    bonus = torch.where(state.is_cut[rows, here], drawn, nodes.choice[rows, here])
    return Verdict.of(tree.ancestors[rows, here], bonus)


class _State:
    """What the removal of leaves has left: of every node its weight [B, N], its laws, whether it is
    still there, and whether it has lost a child. ``rows``, parents and children below are [R]."""

    def __init__(self, tree: TokenTree, nodes: NodeView) -> None:
        assert tree.laws is not None, "a leaf is judged by the laws its path was drawn from"
        self._tree = tree
        self.rows = torch.arange(tree.num_rows, device=tree.tokens.device)
        self.target, self._draft = nodes.probs.clone(), tree.laws.clone()
        self.weight = torch.ones_like(tree.tokens, dtype=torch.float64)
        self.is_left, self.is_cut = tree.valid.clone(), torch.zeros_like(tree.valid)

    def enter(self, rows: Tensor, parents: Tensor, children: Tensor) -> None:
        """Weigh children by what their parents are now."""
        tokens = self._tree.tokens[rows, children]
        draft = self._draft[rows, self._tree.law_index[rows, parents], tokens]
        ratio = self.target[rows, parents, tokens] / draft
        # A token that the target cannot emit weighs nothing.
        weight = (self.weight[rows, parents] * ratio).nan_to_num(nan=0.0).clamp(max=1)
        self.weight[rows, children] = weight

    def remove(self, rows: Tensor, parents: Tensor, children: Tensor) -> None:
        """Take leaves away from their parents."""
        self.is_left[rows, children], self.is_cut[rows, parents] = False, True
        laws = self._tree.law_index[rows, parents]
        draft, weight = self._draft[rows, laws], self.weight[rows, parents]
        target = weight[:, None] * self.target[rows, parents]
        mass = (target - draft).clamp_min(0).sum(-1)
        left = (mass / (mass + 1 - weight)).nan_to_num(nan=0.0)
        self.weight[rows, parents] = torch.where(parents == 0, 1.0, left)
        self.target[rows, parents] = excess(target, draft).to(self.target.dtype)
        self._draft[rows, laws] = without(draft, self._tree.tokens[rows, children])
