"""Drafters at the extremes, and a target that can be made to fail."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.ahead import Ahead, Guess, Message
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.engine.policy import DraftLimits, Fixed
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class TargetDrafter(Drafter):
    """The target as its own draft model: the whole text again for every node, no cache."""

    name = "target"
    can_sample = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._texts: list[list[int]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self._texts.append(list(ids))

    def draft(self, request: DraftRequest) -> TokenTree:
        paths = [
            [[*text, root]] for text, root in zip(self._texts, request.roots.tolist(), strict=True)
        ]

        def expand(frontier: Frontier) -> Tensor:
            nonlocal paths
            tokens, rows = frontier.tokens.tolist(), frontier.parent_rows.tolist()
            paths = [
                [[*above[row], token] for token, row in zip(*nodes, strict=True)]
                for above, *nodes in zip(paths, tokens, rows, strict=True)
            ]
            return request.noise.scores(self._logits(paths), frontier.depth + 1)

        first = request.noise.scores(self._logits(paths), 1)[:, 0]
        return grow(request.plan, request.roots, first, expand, request.depth_caps, request.choose)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, path in enumerate(verdict.paths):
            self._texts[row] += tree.tokens[row, path].tolist()

    def keep(self, rows: list[int]) -> None:
        self._texts = [self._texts[row] for row in rows]

    def _logits(self, paths: list[list[list[int]]]) -> Tensor:
        """[B, K, V] of the last token of each text; the texts of a row are equally long."""
        each = [self._target.model(torch.tensor(texts)).logits[:, -1] for texts in paths]
        return torch.stack(each)


class Table(Drafter):
    """Guesses by the last token alone: ``logits`` [V, V] of what follows each."""

    name = "table"
    can_sample = True

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        """A table remembers nothing."""

    def draft(self, request: DraftRequest) -> TokenTree:
        def expand(frontier: Frontier) -> Tensor:
            return request.noise.scores(self._logits[frontier.tokens], frontier.depth + 1)

        first = request.noise.scores(self._logits[request.roots[:, None]], 1)[:, 0]
        return grow(request.plan, request.roots, first, expand, request.depth_caps, request.choose)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """Nor does it learn."""

    def keep(self, rows: list[int]) -> None:
        """It has no rows."""


class Scripted(Drafter):
    """A chain made of the right continuation by ``change``; ``texts`` are whole answers."""

    name = "scripted"

    def __init__(
        self,
        texts: Iterable[Sequence[int]],
        change: Callable[[list[int]], list[int]] = lambda right: right,
    ) -> None:
        self._texts = [list(text) for text in texts]
        self._change = change
        self._rows: list[list[int]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        (text,) = (text for text in self._texts if text[: len(ids)] == ids)
        self._rows.append(text)

    def draft(self, request: DraftRequest) -> TokenTree:
        chains = []
        for row, root in enumerate(request.roots.tolist()):
            depth = min(request.depth_caps[row], request.plan.depth)
            start = request.lengths[row] + 1
            chains.append([root, *self._change(self._rows[row][start : start + depth])])
        return chain_tree(chains)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """The script is written."""

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]


class Beside:
    """Who writes ahead does so at once, in the process of the test: every draft is ready when it
    is asked for. Messages are pickled, as on their way to another process."""

    def __init__(self, model: Target, vocab_size: int) -> None:
        self._ahead = Ahead(model, vocab_size)
        self._found: dict[int, Guess] = {}

    def send(self, message: Message) -> None:
        self._ahead.tell(pickle.loads(pickle.dumps(message)))
        while self._ahead.is_busy:
            self._found = self._ahead.step()

    def guesses(self) -> dict[int, Guess]:
        return self._found


def chain_tree(chains: list[list[int]]) -> TokenTree:
    """Chains of different length, root included, as one tree."""
    size = max(map(len, chains))
    tokens = torch.tensor([chain + [0] * (size - len(chain)) for chain in chains])
    valid = torch.tensor([[i < len(chain) for i in range(size)] for chain in chains])
    return TokenTree(tokens, torch.arange(-1, size - 1).repeat(len(chains), 1), valid)


class OnAndOff(Fixed):
    """Limits by turns, whatever comes of them; ``None``: no drafting. ``caps`` lowers the rows'
    depths, one after the other."""

    @classmethod
    def of(
        cls, turns: Sequence[TreePlan | None], caps: Sequence[int] = (99,)
    ) -> Callable[[TreePlan], OnAndOff]:
        """As an engine takes it."""

        def made(plan: TreePlan) -> OnAndOff:
            policy = cls(plan)
            policy._turns, policy._caps = cycle(turns), cycle(caps)
            return policy

        return made

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        plan = next(self._turns)
        if plan is None:
            return DraftLimits(self.plan, [0] * len(caps))
        return DraftLimits(plan, [min(cap, next(self._caps)) for cap in caps])


class PoisonedTarget(Target):
    """A target whose logits and features become NaN for one row of one verification."""

    _row, _waits = 0, -1

    def poison(self, row: int, when: int) -> PoisonedTarget:
        """From now on the ``when``-th verification that has ``row`` is poisoned there."""
        self._row, self._waits = row, when
        return self

    def verify(
        self, tree: TokenTree, cache: KVCache, needs: FeatureSpec = NO_FEATURES
    ) -> TargetOutput:
        out = super().verify(tree, cache, needs)
        if len(tree.tokens) > self._row:
            self._waits -= 1
            if self._waits == 0:
                for tensor in (out.logits, out.features):
                    if tensor is not None:
                        tensor[self._row] = torch.nan
        return out


EVERY_PLAN = (
    TreePlan.chain(1),
    TreePlan.chain(7),
    TreePlan("dynamic", depth=1, width=4, budget=4),
    TreePlan("dynamic", depth=2, width=1, budget=1),
    TreePlan("dynamic", depth=3, width=6, budget=5),
    TreePlan("dynamic", depth=6, width=2, budget=40),
    TreePlan("dynamic", depth=2, width=70, budget=30),
    TreePlan.beam(3, 5),
    TreePlan.beam(2, 70),
    TreePlan.parse("static:eagle1"),
    TreePlan.static(((2,), (0,), (1,), (2, 1), (2, 0), (2, 1, 3))),
)
"""Shapes at their edges: budgets below and above the pool, a width above the vocabulary."""
