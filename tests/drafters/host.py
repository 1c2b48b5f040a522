"""Drives drafters that look tokens up: one cycle at a time, without a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.sampling.process import NodeView
from jakiro.target.output import TargetOutput
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import Rule
from jakiro.verify.match import match
from tests.conformance.doubles import chain_tree
from tests.drafters.reference import PlainScores, paths


def draft(
    drafter: Drafter, roots: list[int], plan: TreePlan | None = None, caps: list[int] | None = None
) -> TokenTree:
    """A draft below ``roots``, checked against the limits it was given."""
    plan, caps = plan or drafter.plan, caps or [99] * len(roots)
    lengths = [0] * len(roots)  # where the rows stand does not matter to these drafters
    tree = drafter.draft(DraftRequest(torch.tensor(roots), lengths, caps, plan, PlainScores()))
    tree.check()
    assert tree.tokens[:, 0].tolist() == roots
    assert int(tree.valid.sum(-1).max()) <= plan.budget + 1
    deepest = (tree.depth * tree.valid).amax(-1).tolist()
    assert all(deep <= min(cap, plan.depth) for deep, cap in zip(deepest, caps, strict=True))
    return tree


def accept(drafter: Drafter, rows: Sequence[Sequence[int]]) -> None:
    """Every row accepts all of ``rows``, roots included, of a chain that may be anybody's."""
    tree = chain_tree([list(row) for row in rows])
    paths = [list(range(len(row))) for row in rows]
    out = TargetOutput(torch.zeros(len(rows), tree.num_nodes, 64))
    drafter.accept(tree, Verdict(paths, [0] * len(rows)), out)


def drafted(tree: TokenTree, row: int = 0) -> set[tuple[int, ...]]:
    """Token paths of the valid nodes below the root."""
    return {tuple(path) for path in paths(tree, row).values() if path}


def chains(tree: TokenTree) -> list[list[int]]:
    """Per row the drafted tokens; no row may branch."""
    rows = [max(paths(tree, row).values(), key=len) for row in range(tree.num_rows)]
    assert [len(drafted(tree, row)) for row in range(tree.num_rows)] == [len(row) for row in rows]
    return rows


def replay(drafter: Drafter, prompt: list[int], answer: list[int]) -> float:
    """Tokens per cycle when the target says ``answer``; for drafters that ignore logits."""
    drafter.begin(prompt, None)
    done = cycles = 0
    while done < len(answer) - 1:
        tree = draft(drafter, [answer[done]], caps=[len(answer) - done - 2])
        known = drafted(tree) | {()}
        longest = max(
            n for n in range(len(answer)) if tuple(answer[done + 1 : done + 1 + n]) in known
        )
        accept(drafter, [answer[done : done + 1 + longest]])
        done, cycles = done + longest + 1, cycles + 1
    return (len(answer) - 1) / cycles


class Spy:
    """The rule ``match``, which remembers every tree, what the target chose at its nodes, and what
    was accepted."""

    def __init__(self) -> None:
        self.seen: list[tuple[TokenTree, Tensor, Verdict]] = []

    def __call__(self, tree: TokenTree, nodes: NodeView) -> Verdict:
        verdict = match(tree, nodes)
        self.seen.append((tree, nodes.choice, verdict))
        return verdict

    @property
    def rule(self) -> Rule:
        return Rule("spy", "exact", self)


def cycle_target(size: int) -> ToyTarget:
    """A target that counts up to ``size`` and starts again; token 0 comes once around."""
    table = torch.zeros(size, size, dtype=torch.float64)
    table[torch.arange(size), (torch.arange(size) + 1) % size] = 9.0
    return ToyTarget(table, context_length=512)
