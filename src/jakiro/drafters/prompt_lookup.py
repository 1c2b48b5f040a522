"""Prompt lookup (Saxena 2023): what followed the last n-gram before may follow it again."""

from __future__ import annotations

from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import chain, stack, what_follows
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class PromptLookup(Drafter):
    """Finds the latest earlier occurrence of the longest n-gram (``max_ngram`` down to
    ``min_ngram`` tokens) the text ends in, and proposes what followed it as a chain."""

    name = "prompt_lookup"
    plan = TreePlan.chain(10)

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ConfigError(
                f"need 1 <= min_ngram <= max_ngram, got min_ngram={min_ngram} and "
                f"max_ngram={max_ngram}"
            )
        self._max_ngram, self._min_ngram = max_ngram, min_ngram
        self._texts: list[list[int]] = []
        # Per row and n: where each n-gram was last *followed by* something.
        self._ends: list[dict[tuple[int, ...], int]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self._texts.append([])
        self._ends.append({})
        self._append(len(self._texts) - 1, ids)

    def draft(self, request: DraftRequest) -> TokenTree:
        chains = []
        for row, root in enumerate(request.roots.tolist()):
            limit = min(request.depth_caps[row], request.plan.depth, request.plan.budget)
            chains.append([root, *self._continuation(row, root, limit)])
        return stack([chain(tokens) for tokens in chains], request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, (tokens, path) in enumerate(zip(tree.tokens.tolist(), verdict.paths, strict=True)):
            self._append(row, [tokens[node] for node in path])

    def keep(self, rows: list[int]) -> None:
        self._texts = [self._texts[row] for row in rows]
        self._ends = [self._ends[row] for row in rows]

    def _append(self, row: int, tokens: list[int]) -> None:
        """Extend the text; n-grams are indexed once the token after them is known."""
        text, ends = self._texts[row], self._ends[row]
        for token in tokens:
            for size in self._sizes(text):
                ends[tuple(text[-size:])] = len(text)
            text.append(token)

    def _continuation(self, row: int, root: int, limit: int) -> list[int]:
        """The ``limit`` tokens after the longest known suffix of text + root, if there is one."""
        text = [*self._texts[row], root]
        for size in self._sizes(text):
            start = self._ends[row].get(tuple(text[-size:]))
            if start is not None:
                return what_follows(text, start, limit)
        return []

    def _sizes(self, text: list[int]) -> range:
        """Of the n-grams that ``text`` may end in, the longest first."""
        return range(min(self._max_ngram, len(text)), self._min_ngram - 1, -1)
