"""A target that drafts for itself, through a cheaper view of its own weights.

The view works in the target's cache. Committed entries are the target's own, so the draft starts
from exact keys and values whatever the view leaves out; the entries of a draft lie behind them and
are wiped, as the target may verify fewer nodes than were fed. Hence nothing is remembered between
cycles.
"""

from __future__ import annotations

from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.levels import LevelDrafter, check_confidence
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class SelfDrafter(LevelDrafter):
    """Drafts with ``view``, which reads and writes caches of the target.

    A method is a subclass that makes its view. A view of half the target's cost needs a chain whose
    tokens are nearly all accepted, so the tree is a chain unless the user asks for another. Raises
    ``ConfigError``.
    """

    name = "view"
    plan = TreePlan.chain(4)

    def __init__(self, view: Target, confidence: float = 0.0) -> None:
        check_confidence(confidence)
        super().__init__(view, view.vocab_size)
        self.confidence = confidence

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        """The prompt is in the target's cache."""

    def draft(self, request: DraftRequest) -> TokenTree:
        cache, tree = request.cache, TokenTree.root_only(request.roots)
        assert cache is not None, "a view drafts in the cache of its target"
        if max(request.depth_caps) > 0:
            logits = self._feed(tree, cache, 0).logits
            tree = self._grow(request, cache, logits, request.depth_caps)[0]
        cache.wipe()
        return tree

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """What was accepted is in the target's cache."""

    def keep(self, rows: list[int]) -> None:
        """The rows are those of the target's cache."""


class Reader(SelfDrafter):
    """A self-drafter that remembers, of every row, the text without its root."""

    def __init__(self, view: Target, confidence: float = 0.0) -> None:
        super().__init__(view, confidence)
        self.texts: list[list[int]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.texts.append(list(ids))

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, path in enumerate(verdict.paths):
            self.texts[row] += tree.tokens[row, path].tolist()

    def keep(self, rows: list[int]) -> None:
        self.texts = [self.texts[row] for row in rows]
