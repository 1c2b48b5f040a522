"""What drafters have in common that go on from what the target said behind a wrong guess."""

from __future__ import annotations

from torch import Tensor

from jakiro.drafters.base import Drafter
from jakiro.target.output import TargetOutput
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class Iterated(Drafter):
    """Drafts chains; one iteration is one cycle."""

    def __init__(self) -> None:
        # Per row the logits [V] of the nodes behind the last accepted one's choice, which is the
        # next root: at place d - 1 what should stand at depth d.
        self._behind: list[list[Tensor]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self._behind.append([])

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for index, path in enumerate(verdict.paths):
            parents, valid = tree.parents[index].tolist(), tree.valid[index].tolist()
            behind, last = [], path[-1]
            for node in range(last + 1, len(parents)):
                if valid[node] and parents[node] == last:
                    behind.append(out.logits[index, node])
                    last = node
            self._behind[index] = behind

    def keep(self, rows: list[int]) -> None:
        self._behind = [self._behind[row] for row in rows]
