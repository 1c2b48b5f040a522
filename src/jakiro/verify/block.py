"""Block verification: a drafted chain is judged as a whole."""

from __future__ import annotations

import torch

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.match import match


def block(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Accept the longest prefix of a drawn chain that passes (promise: in_law).

    ``weight_0 = 1``, ``weight_i = min(1, weight_{i-1} target(X_i) / draft(X_i))``. With the
    residual ``[weight_i target - draft]_+`` after X_i of mass ``R_i``, prefix i passes with chance
    ``R_i / (R_i + 1 - weight_i)``, the whole chain with its weight. The next token is drawn from
    the residual after the longest prefix that passed. Never accepts less on average than a rule
    that looks at one token after the other (Sun et al., arXiv 2403.10444). One drafted token makes
    it the token-level rule.
    """
    if tree.num_nodes == 1:
        return match(tree, nodes)
    assert tree.laws is not None, "a block is judged by the laws it was drawn from"
    target, draft = nodes.probs[:, :-1], tree.laws
    tokens, valid = tree.tokens[:, 1:, None], tree.valid[:, 1:]
    ratios = (target.gather(2, tokens) / draft.gather(2, tokens))[:, :, 0]
    weight = torch.ones_like(ratios[:, 0])
    weights = [weight]
    for ratio in ratios.unbind(1):
        # A token that the target cannot emit ends the chain, and so does padding.
        weight = (weight * ratio).nan_to_num(nan=0.0).clamp(max=1)
        weights.append(weight)
    before = torch.stack(weights, 1)
    residual = (before[:, :-1, None] * target - draft).clamp_min(0)
    mass = residual.sum(-1)
    passes = (mass / (mass + 1 - before[:, :-1])).nan_to_num(nan=0.0)
    passes = torch.cat([passes, before[:, -1:]], 1)
    is_last = tree.valid & ~torch.nn.functional.pad(valid, (0, 1))
    passes = torch.where(is_last, before, passes)
    has_passed = tree.valid & (nodes.draws.coins(tree.num_nodes) < passes)
    has_passed[:, 0] = True
    # A prefix is kept if it or a longer one has passed.
    accepted = has_passed.flip(1).int().cummax(1).values.flip(1).bool()
    rows, here = torch.arange(tree.num_rows, device=valid.device), accepted.sum(-1) - 1
    excess = residual[rows, here.clamp(max=residual.shape[1] - 1)]
    is_cut = ~is_last[rows, here] & (excess.sum(-1) > 0)
    bonus = torch.where(is_cut, nodes.draws.draw(excess, here), nodes.choice[rows, here])
    return Verdict.of(accepted, bonus)
