"""Speculative Jacobi decoding (Teng et al., arXiv 2410.01699), for models that draw image tokens:
Jacobi's iteration with drawn guesses, each judged by the law it was drawn from.

A chain of guesses stands behind the text. The target reads all of them at once; the first ones pass
a rule for drawn drafts, and what it said of the places behind them are the laws from which those
are drawn anew. Given the iteration before, the draws are independent, so the rule keeps the
target's law at any temperature; a fixed point in Jacobi's sense is not waited for.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.iterated import Iterated
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

Start = Literal["random", "repeat", "sample"]
_SURE = 1e4
"""A logit beside which all zeros have no chance."""


class Sjd(Iterated):
    """Draws each guess from what the target said of its place in the last iteration.

    Args:
        start: what a place is drawn from that nothing was said of: all tokens alike (``random``),
            the token ``back`` places before (``repeat``), or the law that one was drawn from
            (``sample``).
        back: 1 for the left neighbour, the tokens in a line of the image for the upper one.

    Raises:
        ConfigError: an unknown start, or ``back`` below 1.
    """

    name = "sjd"
    can_sample = True
    plan = TreePlan.chain(16)

    def __init__(self, start: Start = "random", back: int = 1) -> None:
        if start not in get_args(Start):
            raise ConfigError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
        if back < 1:
            raise ConfigError(f"back must be at least 1, got {back}")
        super().__init__()
        self._start, self._back = start, back
        self._texts: list[list[int]] = []
        # Per row the logits [V] that its last ``back`` tokens were chosen from, as far as known.
        self._seen: list[list[Tensor]] = []
        self._even: Tensor | None = None

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        super().begin(ids, features)
        self._texts.append(list(ids))
        self._seen.append([])

    def draft(self, request: DraftRequest) -> TokenTree:
        """Nothing in the very first cycle: only the target's logits tell how many tokens there
        are."""
        size = min(request.plan.depth, request.plan.budget)
        if self._even is None or max(request.depth_caps) < 1:
            return TokenTree.root_only(request.roots)
        texts = [
            [*text, root] for text, root in zip(self._texts, request.roots.tolist(), strict=True)
        ]
        used: list[list[Tensor]] = [[] for _ in texts]

        def scores(depth: int) -> Tensor:
            for row, text in enumerate(texts):
                used[row].append(self._law(row, depth, text, used[row]))
            logits = torch.stack([laws[-1] for laws in used])
            return request.noise.scores(logits[:, None], depth)

        def expand(frontier: Frontier) -> Tensor:
            for text, token in zip(texts, frontier.tokens[:, 0].tolist(), strict=True):
                text.append(token)
            return scores(frontier.depth + 1)

        plan, caps = TreePlan.chain(size), request.depth_caps
        return grow(plan, request.roots, scores(1)[:, 0], expand, caps, request.choose)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        super().accept(tree, verdict, out)
        self._even = torch.zeros_like(out.logits[0, 0])
        for row, (tokens, path) in enumerate(zip(tree.tokens.tolist(), verdict.paths, strict=True)):
            self._texts[row] += [tokens[node] for node in path]
            if self._start == "sample":
                self._seen[row] = [*self._seen[row], *out.logits[row, path]][-self._back :]

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._texts = [self._texts[row] for row in rows]
        self._seen = [self._seen[row] for row in rows]

    def _law(self, row: int, depth: int, text: list[int], used: list[Tensor]) -> Tensor:
        """Logits [V] to draw from at ``depth``, behind ``text``, whose part below the root was
        drawn from ``used``."""
        assert self._even is not None, "the first cycle is over"
        if depth <= len(self._behind[row]):
            return self._behind[row][depth - 1]
        if self._start == "random" or self._back > len(text):
            return self._even
        if self._start == "repeat":
            sure = self._even.clone()
            token = text[-self._back]
            if token < len(sure):
                sure[token] = _SURE
            return sure
        known = [*self._seen[row], *used]
        return known[-self._back] if self._back <= len(known) else self._even
