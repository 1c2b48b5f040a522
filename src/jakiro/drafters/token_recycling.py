"""Token recycling (arXiv 2408.08696): what the target found likely after a token the last time it
saw it, in any node of any tree, accepted or not, it may find likely again."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import CheckpointError, ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.largest import largest
from jakiro.tree.shapes import Path, TreePlan
from jakiro.tree.sketch import Sketch, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

Array = npt.NDArray[np.int64]
Scope = Literal["request", "session", "global"]


class Adjacency:
    """The recycled matrix: to each token seen, the ``width`` likeliest next ones, best first."""

    kind = "adjacency of recycled tokens"

    def __init__(self, width: int = 8) -> None:
        if width < 1:
            raise ConfigError(f"width must be at least 1, got {width}")
        self.width = width
        self._rows: dict[int, tuple[int, ...]] = {}

    def after(self, token: int) -> tuple[int, ...]:
        """What followed ``token``; nothing if it was never seen."""
        return self._rows.get(token, ())

    def put(self, token: int, ranked: list[int]) -> None:
        """The target has ranked what follows ``token``; this replaces what was known."""
        self._rows[token] = tuple(ranked[: self.width])

    def put_first(self, token: int, follower: int) -> None:
        """``follower`` came after ``token`` in a text; the others move down."""
        rest = [other for other in self.after(token) if other != follower]
        self.put(token, [follower, *rest])

    def largest_token(self) -> int:
        """The largest id that follows any; -1: nothing is known."""
        return max(map(max, filter(None, self._rows.values())), default=-1)

    def copy(self) -> Adjacency:
        """One that learns apart from this one."""
        other = Adjacency(self.width)
        other._rows = dict(self._rows)
        return other

    def arrays(self) -> dict[str, Array]:
        """``tokens`` [R] and ``followers`` [R, width], padded by -1."""
        padded = [[*row, *[-1] * (self.width - len(row))] for row in self._rows.values()]
        followers = np.array(padded, np.int64).reshape(-1, self.width)
        return {"tokens": np.array(list(self._rows), np.int64), "followers": followers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Adjacency:
        """The inverse of ``arrays``; ``CheckpointError`` if they do not belong together."""
        tokens, followers = arrays.get("tokens"), arrays.get("followers")
        if tokens is None or followers is None or followers.shape[:-1] != tokens.shape:
            raise CheckpointError("its arrays do not fit each other; save it again")
        found = cls(followers.shape[-1])
        for token, row in zip(tokens.tolist(), followers.tolist(), strict=True):
            found.put(token, [follower for follower in row if follower >= 0])
        return found


class TokenRecycling(Drafter):
    """Fills a fixed shape by repeated lookup, and learns from the logits of every node.

    ``scope``: ``request``: each starts from ``matrix`` and forgets; ``session``: all requests of
    this drafter share a copy; ``global``: they learn into the very ``matrix`` given, which several
    drafters may hold. What is shared changes how many tokens are accepted, never which.
    """

    name = "token_recycling"
    plan = TreePlan("dynamic", depth=6, width=8, budget=20)

    def __init__(self, scope: Scope = "session", matrix: Adjacency | None = None) -> None:
        if scope not in ("request", "session", "global"):
            raise ConfigError(f"scope must be request, session or global, got {scope!r}")
        if scope == "global" and matrix is None:
            raise ConfigError("scope global needs a matrix; make one with Adjacency()")
        given = matrix or Adjacency()
        self._scope = scope
        self._matrix = given if scope == "global" else given.copy()
        self._rows: list[Adjacency] = []

    def largest_token(self) -> int:
        return self._matrix.largest_token()

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        row = self._matrix.copy() if self._scope == "request" else self._matrix
        for token, follower in pairwise(ids):
            row.put_first(token, follower)
        self._rows.append(row)

    def draft(self, request: DraftRequest) -> TokenTree:
        shape, sketches = template(request.plan), []
        for row, root, cap in zip(
            self._rows, request.roots.tolist(), request.depth_caps, strict=True
        ):
            sketch = Sketch(root)
            nodes: dict[Path, int] = {(): 0}
            for path in shape:
                if len(path) <= cap and (parent := nodes.get(path[:-1])) is not None:
                    followers = row.after(sketch.tokens[parent])
                    if path[-1] < len(followers):
                        nodes[path] = sketch.child(parent, followers[path[-1]])
            sketches.append(sketch)
        return stack(sketches, request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        width = min(max((row.width for row in self._rows), default=1), out.logits.shape[-1])
        ranked = largest(out.logits, width).indices.tolist()
        for row, tokens, valid, ranks, path in zip(
            self._rows,
            tree.tokens.tolist(),
            tree.valid.tolist(),
            ranked,
            verdict.paths,
            strict=True,
        ):
            # A token may occur several times; the last to write is right: the deepest accepted
            # node, before the other accepted ones, before the rest from the best down.
            rest = [node for node in reversed(range(len(tokens))) if valid[node]]
            for node in [*rest, *path]:
                row.put(tokens[node], ranks[node])

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]


@lru_cache
def template(plan: TreePlan) -> tuple[Path, ...]:
    """The rank paths to fill, parents first: those of a static plan; else the ``budget`` likeliest,
    if rank r is right in a share ``0.4 / (r + 1)^2.1`` of cases, between what the bundled target
    shows greedy and at T = 1. With 80 nodes of depth 6 that gives levels of 8, 21, 25, 19, 6 and 1
    nodes; the published shape has 8, 21, 25, 15, 8 and 3."""
    if plan.kind == "static":
        return plan.paths
    shares = [0.4 / (rank + 1) ** 2.1 for rank in range(plan.width)]
    found: list[Path] = []
    heap: list[tuple[float, Path]] = [(-1.0, ())]
    while heap and len(found) <= plan.budget:
        share, path = heapq.heappop(heap)
        found.append(path)
        if len(path) < plan.depth:
            for rank, part in enumerate(shares):
                heapq.heappush(heap, (share * part, (*path, rank)))
    return tuple(found[1:])
