"""Rejection sampling down a drawn tree: siblings without replacement, or independent ones."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.descent import Trial, descend, excess, without


def recursive_rejection(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Try the children of the accepted node in the order they were drawn (promise: in_law).

    A child x is accepted with probability ``min(1, target(x) / draft(x))``. After a rejection the
    target becomes ``norm([target - draft]_+)``, and the draft loses x and is normalised again: the
    law the next sibling was drawn from. If no child is left, a token is drawn from the target as
    it is then (recursive rejection sampling of RSD, arXiv 2402.14160, and of EAGLE-1, arXiv
    2401.15077). With one child per node this is the token-level rule of speculative sampling
    (arXiv 2211.17192, 2302.01318).
    """
    return descend(tree, nodes, _unchanged, _refuse_distinct)


def multi_round(tree: TokenTree, nodes: NodeView) -> Verdict:
    """The same for siblings drawn independently (promise: in_law): a rejection leaves the draft as
    it is, and a token is tried as often as it was drawn (SpecInfer, arXiv 2305.09781)."""
    return descend(tree, nodes, _unchanged, _refuse_independent, twins_of(tree))


def twins_of(tree: TokenTree) -> Tensor:
    """[B, N]: of the valid nodes that have the text of a node, the first."""
    index = torch.arange(tree.num_nodes, device=tree.tokens.device)
    parents, depth = tree.parents.clamp_min(0), tree.depth
    alike = (tree.tokens[:, :, None] == tree.tokens[:, None]) & tree.valid[:, None]
    alike &= depth[:, :, None] == depth[:, None]
    alike |= torch.eye(tree.num_nodes, dtype=torch.bool, device=index.device)
    twins = index.expand_as(parents)
    # Level by level: alike are nodes of one token below parents that are.
    for _ in range(int(depth.max())):
        above = twins.gather(1, parents)
        twins = (alike & (above[:, :, None] == above[:, None])).int().argmax(-1)
    return twins


def _unchanged(target: Tensor, draft: Tensor, count: Tensor) -> Trial:
    return Trial(target, draft, target)


def _refuse_distinct(trial: Trial, token: Tensor) -> Trial:
    target = excess(trial.chance, trial.draft)
    return Trial(target, without(trial.draft, token), target)


def _refuse_independent(trial: Trial, token: Tensor) -> Trial:
    target = excess(trial.chance, trial.draft)
    return Trial(target, trial.draft, target)
