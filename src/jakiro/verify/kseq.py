"""K-SEQ, the rule of SpecTr (Sun et al., arXiv 2310.15141), for independent candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.descent import Trial, descend
from jakiro.verify.rejection import twins_of

_STEPS = 20
"""Halvings of the interval that holds ``rho``; at least as large as it must be, so the law is exact
after any number of them."""


def kseq(tree: TokenTree, nodes: NodeView) -> Verdict:
    """All k candidates below the accepted node have the same chance (promise: in_law).

    With ``beta(rho) = sum_x min(draft(x), target(x) / rho)`` and the smallest ``rho`` in [1, k]
    with ``1 - (1 - beta)^k <= rho beta``, a candidate x is accepted with probability
    ``min(1, target(x) / (rho draft(x)))``. If all are rejected, a token is drawn from
    ``norm([target - min(draft, target / rho) (1 - (1 - beta)^k) / beta]_+)``. Accepts at least
    ``1 - 1/e`` of what any rule could; with one candidate it is the token-level rule. Of K drawn
    paths, those that agree with what was accepted stay candidates.
    """
    return descend(tree, nodes, _trial, lambda trial, token: trial, twins_of(tree))


def _trial(target: Tensor, draft: Tensor, count: Tensor) -> Trial:
    target, draft = target.double(), draft.double()
    number = count.clamp_min(1)[:, None].double()
    low, high = torch.ones_like(number), number
    for _ in range(_STEPS):
        rho = (low + high) / 2
        is_enough = _hit(_overlap(target, draft, rho), number) <= rho
        low, high = torch.where(is_enough, low, rho), torch.where(is_enough, rho, high)
    is_enough = _hit(_overlap(target, draft, torch.ones_like(number)), number) <= 1
    rho = torch.where(is_enough, 1.0, high)
    share = torch.minimum(draft, target / rho)
    rest = (target - share * _hit(_overlap(target, draft, rho), number)).clamp_min(0)
    # What rounding refuses must still be answered from the target.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, target)
    return Trial(target / rho, draft, rest)


def _overlap(target: Tensor, draft: Tensor, rho: Tensor) -> Tensor:
    """[B, 1]: the chance that one candidate is accepted."""
    return torch.minimum(draft, target / rho).sum(-1, keepdim=True)


def _hit(overlap: Tensor, number: Tensor) -> Tensor:
    """[B, 1]: the chance that one of ``number`` candidates is accepted, over that of one."""
    missed = (1 - overlap).clamp_min(0)
    # The sum of the powers of ``missed`` below ``number``: no division by a small overlap.
    return torch.where(missed < 1, (1 - missed**number) / (1 - missed), number)
