"""The rule ``match``: follow the child that equals the target's own choice."""

from __future__ import annotations

from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


def match(tree: TokenTree, nodes: NodeView) -> Verdict:
    """Accept the longest path on which every token is the choice at its parent (promise: exact).

    With position-keyed noise the choice at a node does not depend on the tree, so this one rule
    serves every temperature: the text is that of plain decoding with the same seed.
    """
    choices = nodes.listed.choice
    paths = [_path(*row) for row in zip(*tree.listed[:3], choices, strict=True)]
    ends = zip(choices, paths, strict=True)
    return Verdict(paths, [choice[path[-1]] for choice, path in ends])


def _path(tokens: list[int], parents: list[int], valid: list[int], choice: list[int]) -> list[int]:
    """One way down is enough: children come after their parent, and siblings are distinct."""
    path, last = [0], 0
    for node, parent in enumerate(parents):
        if parent == last and tokens[node] == choice[last] and valid[node]:
            path.append(last := node)
    return path
