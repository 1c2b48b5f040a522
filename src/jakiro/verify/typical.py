"""Typical acceptance: lossy, whatever is likely enough may stay."""

from __future__ import annotations

import torch

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

EPSILON = 0.09
DELTA = 0.3
"""The published setting: DELTA is the square root of EPSILON."""


def typical(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Accept the longest path of tokens that are not atypical (promise: lossy).

    A token may stay if its processed probability exceeds ``min(EPSILON, DELTA exp(-H))``, H being
    the entropy of the processed law at its parent (Medusa, arXiv 2401.10774). Of equally long
    paths the likeliest stays, then the first. The emitted text does *not* follow the target's law:
    likely drafts are accepted more often than they would be drawn. Greedy rows keep their text.
    """
    probs = nodes.probs.double()
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    threshold = (DELTA * (-entropy).exp()).clamp(max=EPSILON)
    parents = tree.parents.clamp_min(0)
    rows = torch.arange(tree.num_rows, device=parents.device)[:, None]
    # A list may name a token that the embedding knows and the target cannot choose.
    is_known = tree.tokens < probs.shape[-1]
    chance = probs[rows, parents, tree.tokens.masked_fill(~is_known, 0)]
    stays = tree.valid & is_known & (chance > threshold.gather(1, parents))
    stays[:, 0] = True
    stays = (stays[:, None, :] | ~tree.ancestors).all(-1)
    chance = chance.log()
    chance[:, 0] = 0
    total = (tree.ancestors * chance.masked_fill(~stays, 0)[:, None]).sum(-1)
    longest = stays & (tree.depth == (tree.depth * stays).amax(-1, keepdim=True))
    last = total.masked_fill(~longest, -torch.inf).argmax(-1, keepdim=True)
    accepted = tree.ancestors.gather(1, last[:, :, None].expand(-1, 1, tree.num_nodes))[:, 0]
    return Verdict.of(accepted, nodes.choice.gather(1, last)[:, 0])
