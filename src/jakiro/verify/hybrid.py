"""The most probable candidates and one that is drawn (Hu et al., arXiv 2502.18779)."""

from __future__ import annotations

import torch

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.descent import excess
from jakiro.verify.match import match


def hybrid(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Try the drawn child first, then let the target choose among the others (promise: in_law).

    Let D be all children of a node but the last, and ``draft`` the law without D, normalised: what
    the last child x was drawn from. It is accepted with probability ``min(1, target(x) /
    draft(x))``, else the target becomes ``norm([target - draft]_+)``. Then a token is drawn from
    the target: if a child in D has it, that child is accepted, else it is the bonus. Accepts with
    probability ``target(D) + sum_{y not in D} min(target(y), draft(y))``, the optimum for such
    candidates.
    """
    if tree.num_nodes == 1:
        return match(tree, nodes)
    assert tree.laws is not None, "a drawn child is judged by the law it was drawn from"
    rows = torch.arange(tree.num_rows, device=tree.tokens.device)
    index = torch.arange(tree.num_nodes, device=tree.tokens.device)
    coins = nodes.draws.coins(tree.num_nodes)
    here = depth = torch.zeros_like(rows)
    while True:
        children = tree.parents == here[:, None]
        # The drawn child keeps its place where there was nothing to draw.
        one = (children * index).argmax(-1)
        is_drawn = children.any(-1) & tree.valid[rows, one]
        listed = children & tree.valid & (index != one[:, None])
        target = nodes.probs[rows, here]
        law = tree.laws[rows, tree.law_index[rows, here]]
        # Tokens of other nodes are written behind the vocabulary.
        places = tree.tokens.masked_fill(~listed, law.shape[-1])
        draft = torch.nn.functional.pad(law, (0, 1)).scatter(1, places, 0.0)[:, :-1]
        draft = draft / draft.sum(-1, keepdim=True).clamp_min(torch.finfo(draft.dtype).tiny)
        token = tree.tokens[rows, one]
        passes = is_drawn & (coins[rows, one] * draft[rows, token] < target[rows, token])
        token = nodes.choice[rows, here]
        refused = is_drawn & ~passes
        if refused.any():
            again = nodes.draws.draw(excess(target, draft), depth)
            token = torch.where(refused, again, token)
        chosen = listed & (tree.tokens == token[:, None])
        child = torch.where(passes, one, chosen.int().argmax(-1))
        moves = passes | chosen.any(-1)
        if not moves.any():
            break
        here, depth = torch.where(moves, child, here), depth + moves.long()
    return Verdict.of(tree.ancestors[rows, here], token)
