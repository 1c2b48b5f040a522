"""The rule ``match``: follow the child that equals the target's own choice."""

from __future__ import annotations

import torch

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict, accepted_path


def match(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Accept the longest path on which every token is the choice at its parent (promise: exact).

    With position-keyed noise the choice at a node does not depend on the tree, so this one rule
    serves every temperature: the text is that of plain decoding with the same seed.
    """
    if tree.num_nodes == 1:  # nothing was drafted: only the bonus is left
        root = torch.zeros_like(tree.tokens)
        return Verdict(root, root[:, 0], nodes.choice[:, 0])
    parents = tree.parents.clamp_min(0)
    agrees = tree.valid & (tree.tokens == nodes.choice.gather(1, parents))
    agrees[:, 0] = True
    accepted = (agrees[:, None, :] | ~tree.ancestors).all(-1)
    # Siblings are distinct, so the accepted nodes are one path.
    path, num_accepted = accepted_path(accepted)
    bonus = nodes.choice.gather(1, path[:, -1:])[:, 0]
    return Verdict(path, num_accepted, bonus)
