"""From the root downwards: the candidates below the accepted node are tried one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.match import match


class Trial(NamedTuple):
    """What decides on the candidates below one node of every row, all [B, V].

    A candidate x passes with probability ``min(1, chance(x) / draft(x))``. Once one was refused and
    none is left, the next token is drawn from ``rest``.
    """

    chance: Tensor
    draft: Tensor
    rest: Tensor


Open = Callable[[Tensor, Tensor, Tensor], Trial]
"""The trial at a node: from the laws of target and draft [B, V] and the number of candidates [B],
which is 0 in rows whose trial does not matter."""
Refuse = Callable[[Trial, Tensor], Trial]
"""The trial once the tokens [B] were refused."""


def descend(
    tree: TokenTree, nodes: NodeView, begin: Open, refuse: Refuse, twins: Tensor | None = None
) -> Verdict:
    """Try the candidates of the accepted node in order of their indices; go to the one that
    passes.

    ``twins`` [B, N]: the node that stands for each, where several have the same text; all their
    children are candidates then. Without it no two nodes have.
    """
    if tree.num_nodes == 1:
        return match(tree, nodes)
    assert tree.laws is not None, "candidates are tried by the law they were drawn from"
    rows = torch.arange(tree.num_rows, device=tree.tokens.device)
    index = torch.arange(tree.num_nodes, device=tree.tokens.device)
    same = index.expand_as(tree.tokens) if twins is None else twins
    above = same.gather(1, tree.parents.clamp_min(0)).masked_fill(index == 0, -1)
    coins = nodes.draws.coins(tree.num_nodes)
    last = tried = torch.zeros_like(rows)
    trial, arrived = None, torch.ones_like(rows, dtype=torch.bool)
    while True:
        candidates = tree.valid & (above == same[rows, last, None])
        waiting = candidates & (index > tried[:, None])
        on_trial = waiting.any(-1)
        if not on_trial.any():
            break
        child = waiting.int().argmax(-1)
        if arrived.any():
            draft = tree.laws[rows, tree.law_index[rows, tree.parents[rows, child]]]
            count = candidates.sum(-1) * on_trial
            trial = _chosen(arrived, begin(nodes.probs[rows, last], draft, count), trial)
        assert trial is not None
        token = tree.tokens[rows, child]
        passes = coins[rows, child] * trial.draft[rows, token] < trial.chance[rows, token]
        arrived, stays = on_trial & passes, on_trial & ~passes
        trial = _chosen(stays, refuse(trial, token), trial)
        last = torch.where(arrived, child, last)
        tried = torch.where(on_trial, child, tried).masked_fill(arrived, 0)
    bonus = nodes.choice[rows, last]
    if trial is not None:
        # Where nothing was refused below the path, the bonus is the target's own choice.
        drawn = nodes.draws.draw(trial.rest, tree.depth[rows, last])
        bonus = torch.where(tried > 0, drawn, bonus)
    return Verdict.of(tree.ancestors[rows, last], bonus)


def excess(target: Tensor, draft: Tensor) -> Tensor:
    """``norm([target - draft]_+)`` [.., V]: what is left of ``target`` once a token drawn from
    ``draft`` was refused."""
    positive = (target - draft).clamp_min(0)
    mass = positive.sum(-1, keepdim=True)
    # Equal laws refuse nothing; what rounding refuses must still be answered from the target.
    return torch.where(mass > 0, positive / mass, target)


def without(draft: Tensor, token: Tensor) -> Tensor:
    """``draft`` [B, V] normalised without ``token`` [B]; zero if nothing is left, and then nothing
    more is proposed."""
    draft = draft.scatter(1, token[:, None], 0.0)
    return draft / draft.sum(-1, keepdim=True).clamp_min(torch.finfo(draft.dtype).tiny)


def _chosen(rows: Tensor, new: Trial, old: Trial | None) -> Trial:
    """``new`` in ``rows`` [B] bool."""
    if old is None:
        return new
    each = zip(new, old, strict=True)
    return Trial(*(torch.where(rows[:, None], after, before) for after, before in each))
