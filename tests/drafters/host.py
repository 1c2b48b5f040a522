"""Drives drafters that look tokens up: one cycle at a time, without a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
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
    path = torch.arange(tree.num_nodes).expand(len(rows), -1)
    counts = torch.tensor([len(row) - 1 for row in rows])
    bonus = torch.zeros(len(rows), dtype=torch.int64)
    out = TargetOutput(torch.zeros(len(rows), tree.num_nodes, 64))
    drafter.accept(tree, Verdict(path, counts, bonus), out)


def drafted(tree: TokenTree, row: int = 0) -> set[tuple[int, ...]]:
    """Token paths of the valid nodes below the root."""
    return {tuple(path) for path in paths(tree, row).values() if path}


def chains(tree: TokenTree) -> list[list[int]]:
    """Per row the drafted tokens; no row may branch."""
    rows = [max(paths(tree, row).values(), key=len) for row in range(tree.num_rows)]
    assert [len(drafted(tree, row)) for row in range(tree.num_rows)] == [len(row) for row in rows]
    return rows


def step(drafter: Drafter, tree: TokenTree, path: list[int], bonus: int, logits: Tensor) -> None:
    """One row accepts the nodes ``path`` (root included) of ``tree``; ``logits`` [N, V]."""
    verdict = Verdict(torch.tensor([path]), torch.tensor([len(path) - 1]), torch.tensor([bonus]))
    drafter.accept(tree, verdict, TargetOutput(logits[None]))
