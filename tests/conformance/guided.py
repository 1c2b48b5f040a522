"""Makes any drafter good enough to be tested: untrained ones almost never hit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.target.output import TargetOutput
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

HIT_RATE = 0.7


class Guided(Drafter):
    """Plants the target's next tokens on one root-to-leaf path of every tree of ``inner``.

    ``texts`` are whole answers, prompt included, as plain decoding would give them. Each node of
    the path gets the right token with probability ``HIT_RATE`` (its twin among the siblings, if
    there is one, gets the old token in exchange) and a wrong one otherwise: its own, mostly. A row
    whose tree is shallower than its plan and its cap first gets one path of that depth: ``none``
    and an n-gram guess are tested on trees, too, because a drafter must bear any verdict it is told
    about.
    """

    def __init__(self, inner: Drafter, texts: Iterable[Sequence[int]], seed: int = 0) -> None:
        self.inner = inner
        self.name = f"guided {inner.name}"
        self.needs = inner.needs
        self.plan = inner.plan
        self.can_sample = inner.can_sample
        self.trees: list[TokenTree] = []
        self._texts = [list(text) for text in texts]
        self._rows: list[list[int]] = []
        self._random = random.Random(seed)

    def begin(self, ids: list[int], features: torch.Tensor | None) -> None:
        self.inner.begin(ids, features)
        (text,) = (text for text in self._texts if text[: len(ids)] == ids)
        self._rows.append(text)

    def draft(self, request: DraftRequest) -> TokenTree:
        tree = self.inner.draft(request)
        rows = []
        for row, cap in enumerate(request.depth_caps):
            draft = _Row(*(x[row].tolist() for x in (tree.tokens, tree.parents, tree.valid)))
            wanted = self._rows[row][request.lengths[row] + 1 :]
            path = self._path(draft, min(cap, request.plan.depth))
            self._plant(draft, path, wanted)
            rows.append(draft)
        guided = _stack(rows, request.roots.device)
        guided.check(has_twins=request.is_sampled)
        self.trees.append(guided)
        return guided

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        self.inner.accept(tree, verdict, out)

    def keep(self, rows: list[int]) -> None:
        self.inner.keep(rows)
        self._rows = [self._rows[row] for row in rows]

    def _path(self, draft: _Row, depth: int) -> list[int]:
        """Nodes below the root of one path; if no node is ``depth`` deep, one is made."""
        paths: dict[int, list[int]] = {0: []}
        for node, parent in enumerate(draft.parents[1:], start=1):
            if draft.valid[node]:
                paths[node] = [*paths[parent], node]
        longest = max(map(len, paths.values()))
        path = self._random.choice([path for path in paths.values() if len(path) == longest])
        while len(path) < depth:
            path = [*path, draft.add(path[-1] if path else 0, self._random.randrange(60))]
        return path

    def _plant(self, draft: _Row, path: list[int], wanted: list[int]) -> None:
        for node, right in zip(path, wanted, strict=False):
            beside = [i for i, p in enumerate(draft.parents) if p == draft.parents[node]]
            if self._random.random() < HIT_RATE:
                for other in beside:
                    if draft.tokens[other] == right:
                        draft.tokens[other] = draft.tokens[node]
                draft.tokens[node] = right
            elif draft.tokens[node] == right:
                taken = {draft.tokens[i] for i in beside}
                draft.tokens[node] = next(token for token in range(60) if token not in taken)


@dataclass
class _Row:
    """One row of a tree, as lists."""

    tokens: list[int]
    parents: list[int]
    valid: list[bool]

    def add(self, parent: int, token: int) -> int:
        """A new node, behind any padding; a node with siblings is never made."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.valid.append(True)
        return len(self.tokens) - 1


def _stack(rows: list[_Row], device: torch.device) -> TokenTree:
    """One tree of rows of different sizes, padded at the end."""
    size = max(len(row.tokens) for row in rows)
    padded = [
        [list_ + [filler] * (size - len(list_)) for list_ in lists]
        for lists, filler in (
            ([row.tokens for row in rows], 0),
            ([row.parents for row in rows], 0),
            ([row.valid for row in rows], False),
        )
    ]
    return TokenTree(*(torch.tensor(lists, device=device) for lists in padded))
