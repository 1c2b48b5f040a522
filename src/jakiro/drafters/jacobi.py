"""Jacobi decoding (arXiv 2305.10427): what the target said behind a wrong guess is the next guess.

The guesses are a chain below the root, so a draft is one iteration: every node's logits, given the
guesses before it, say what should stand behind it. What agrees is accepted, the rest is refined.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.iterated import Iterated
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import chain, stack
from jakiro.tree.token_tree import TokenTree


@dataclass(eq=False)
class _Row:
    prompt: list[int]
    chance: random.Random


class Jacobi(Iterated):
    """Proposes the argmax of the last iteration's logits, with the noise of the positions if there
    is any: at T > 0, too, a guess is what the target would choose. Places never guessed before
    start with a random token of the prompt."""

    name = "jacobi"
    plan = TreePlan.chain(8)

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[_Row] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        super().begin(ids, features)
        self._rows.append(_Row(list(ids), random.Random(0)))

    def draft(self, request: DraftRequest) -> TokenTree:
        limit = min(request.plan.depth, request.plan.budget)
        depths = [min(cap, limit) for cap in request.depth_caps]
        chains = [[root] for root in request.roots.tolist()]
        for depth in range(1, max(depths) + 1):
            known = [behind[depth - 1] if depth <= len(behind) else None for behind in self._behind]
            guesses = self._guesses(known, depth, request)
            for row, tokens, guess, last in zip(self._rows, chains, guesses, depths, strict=True):
                if depth <= last:
                    tokens.append(row.chance.choice(row.prompt) if guess is None else guess)
        return stack([chain(tokens) for tokens in chains], request.roots.device)

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._rows = [self._rows[row] for row in rows]

    def _guesses(
        self, known: list[Tensor | None], depth: int, request: DraftRequest
    ) -> list[int | None]:
        """The best tokens at ``depth`` from what each row knows of it."""
        some = next((logits for logits in known if logits is not None), None)
        if some is None:
            return [None] * len(known)
        filled = [torch.zeros_like(some) if logits is None else logits for logits in known]
        best = request.noise.scores(torch.stack(filled)[:, None], depth)[:, 0].argmax(-1).tolist()
        return [
            None if logits is None else token for logits, token in zip(known, best, strict=True)
        ]
