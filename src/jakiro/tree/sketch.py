"""Trees made node by node on the host, for drafters that look tokens up instead of scoring them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.tree.token_tree import TokenTree


class Sketch:
    """The tree of one row, as lists; node 0 is the root."""

    def __init__(self, root: int) -> None:
        self.tokens = [root]
        self.parents = [-1]
        self.valid = [True]
        self._nodes: dict[tuple[int, int], int] = {}

    @property
    def num_drafted(self) -> int:
        """Nodes that may be accepted, without the root."""
        return len(self._nodes)

    def child(self, parent: int, token: int) -> int:
        """The child of ``parent`` that carries ``token``, made if there is none."""
        node = self._nodes.get((parent, token))
        if node is None:
            node = self._nodes[parent, token] = self._append(parent, token, True)
        return node

    def path(self, tokens: Iterable[int], budget: int) -> None:
        """Add a path below the root as far as ``budget`` drafted nodes go; prefixes are shared."""
        node = 0
        for token in tokens:
            if (node, token) not in self._nodes and self.num_drafted >= budget:
                return
            node = self.child(node, token)

    def auxiliary(self, parent: int, token: int) -> int:
        """A node that is fed for its logits only and can never be accepted."""
        return self._append(parent, token, False)

    def _append(self, parent: int, token: int, is_valid: bool) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.valid.append(is_valid)
        return len(self.tokens) - 1


def chain(tokens: Sequence[int]) -> Sketch:
    """A chain, ``tokens[0]`` being the root."""
    sketch = Sketch(tokens[0])
    sketch.path(tokens[1:], len(tokens))
    return sketch


def what_follows(text: Sequence[int], start: int, size: int) -> list[int]:
    """``size`` tokens from ``text[start]`` on. Beyond its end the text goes on as if it copied
    itself: with ``0 1 2`` before the end, ``0 1 2 0 1 2``; a text that repeats itself with a short
    period would be continued by one period only."""
    period = len(text) - start
    return [text[start + i % period] for i in range(size)] if period > 0 else []


def stack(sketches: Sequence[Sketch], device: torch.device) -> TokenTree:
    """One tree of all rows, padded at the end."""
    size = max(len(sketch.tokens) for sketch in sketches)

    def padded(lists: Iterable[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (size - len(row)) for row in lists], device=device)

    return TokenTree(
        padded(sketch.tokens for sketch in sketches),
        padded(sketch.parents for sketch in sketches),
        padded([int(valid) for valid in sketch.valid] for sketch in sketches).bool(),
    )


def mix(takes_first: Sequence[bool], first: TokenTree, second: TokenTree) -> TokenTree:
    """Row by row the tree of ``first`` where ``takes_first``, else that of ``second``; both have
    the same roots. Scores are dropped: two drafters do not mean the same by them."""
    size = max(first.num_nodes, second.num_nodes)
    rows = torch.tensor(takes_first, device=first.tokens.device)[:, None]

    def either(one: Tensor, two: Tensor) -> Tensor:
        one, two = (F.pad(each, (0, size - each.shape[1])) for each in (one, two))
        return torch.where(rows, one, two)

    return TokenTree(
        either(first.tokens, second.tokens),
        either(first.parents, second.parents),
        either(first.valid, second.valid),
    )
