"""Rejection sampling down a tree whose siblings were drawn without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict, accepted_path
from jakiro.verify.match import match


def recursive_rejection(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Try the children of the accepted node in the order they were drawn (promise: in_law).

    A child x is accepted with probability ``min(1, target(x) / draft(x))``. After a rejection the
    target becomes ``norm([target - draft]_+)``, and the draft loses x and is normalised again: the
    law the next sibling was drawn from. If no child is left, a token is drawn from the target as
    it is then (recursive rejection sampling of RSD, arXiv 2402.14160, and of EAGLE-1, arXiv
    2401.15077). With one child per node this is the token-level rule of speculative sampling
    (arXiv 2211.17192, 2302.01318).
    """
    if tree.num_nodes == 1:
        return match(tree, nodes)
    assert tree.laws is not None, "siblings are tried by the law they were drawn from"
    rows = torch.arange(tree.num_rows, device=tree.tokens.device)
    index = torch.arange(tree.num_nodes, device=tree.tokens.device)
    coins = nodes.draws.coins(tree.num_nodes)
    accepted = index.expand_as(tree.tokens) == 0
    here = tried = torch.zeros_like(rows)
    target, draft = nodes.probs[:, 0], tree.laws[:, 0]
    while True:
        waiting = tree.valid & (tree.parents == here[:, None]) & (index > tried[:, None])
        on_trial = waiting.any(-1)
        if not on_trial.any():
            break
        child = waiting.int().argmax(-1)
        token = tree.tokens[rows, child]
        passes = coins[rows, child] * draft[rows, token] < target[rows, token]
        moves, stays = on_trial & passes, (on_trial & ~passes)[:, None]
        accepted = accepted | (moves[:, None] & (index == child[:, None]))
        tried = torch.where(on_trial, child, tried)
        target, draft = (
            torch.where(stays, left, now)
            for left, now in zip(_rejected(target, draft, token), (target, draft), strict=True)
        )
        here = torch.where(moves, child, here)
        target = torch.where(moves[:, None], nodes.probs[rows, child], target)
        below = tree.laws[rows, tree.law_index[rows, child]]
        draft = torch.where(moves[:, None], below, draft)
    path, num_accepted = accepted_path(accepted)
    # Where nothing was rejected below the path, the bonus is the target's own choice.
    drawn = nodes.draws.draw(target, num_accepted)
    bonus = torch.where(tried > here, drawn, nodes.choice[rows, here])
    return Verdict(path, num_accepted, bonus)


def _rejected(target: Tensor, draft: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Both laws [B, V] once ``token`` [B], drawn from ``draft``, has been rejected."""
    excess = (target - draft).clamp_min(0)
    mass = excess.sum(-1, keepdim=True)
    # Equal laws reject nothing; what rounding rejects must still be answered from the target.
    target = torch.where(mass > 0, excess / mass, target)
    draft = draft.scatter(1, token[:, None], 0.0)
    # A draft that has nothing left proposes nothing more.
    return target, draft / draft.sum(-1, keepdim=True).clamp_min(torch.finfo(draft.dtype).tiny)
