"""Plain decoding: the loop with the empty tree, and the baseline of every speed figure."""

from __future__ import annotations

from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class NoDrafter(Drafter):
    """Proposes nothing."""

    name = "none"
    can_sample = True
    """It has no node that was not drawn."""
    plan = TreePlan.chain(1)
    """Any would do; every rule takes this one."""

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        """Nothing to remember."""

    def draft(self, request: DraftRequest) -> TokenTree:
        return TokenTree.root_only(request.roots)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """Nothing to learn."""

    def keep(self, rows: list[int]) -> None:
        """No rows to renumber."""
