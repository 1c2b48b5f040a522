"""What happened in a cycle, for those who want to watch; recorded only on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle of one row: its draft tree, what was kept of it, and how long it took.

    Nodes are those that could be accepted, the root first; ``parents`` are places in the same
    list, -1 for the root; ``path`` holds the places of the accepted ones, the root's among them.
    The times are those of the whole batch.
    """

    tokens: list[int]
    parents: list[int]
    origins: list[str]
    """What proposed each node (``Drafter.origin``); nothing at the root."""
    path: list[int]
    bonus: int
    draft_ms: float
    verify_ms: float

    @classmethod
    def of(
        cls,
        tree: TokenTree,
        verdict: Verdict,
        row: int,
        times_ms: tuple[float, float],
        origin: Callable[[int, int, int], str],
    ) -> Cycle:
        """That of ``row``; ``times_ms``: of drafting and verifying; ``origin`` of its drafter."""
        tokens, parents, valid, depths = (column[row] for column in tree.listed)
        nodes = [node for node, is_valid in enumerate(valid) if is_valid]
        places = {node: place for place, node in enumerate(nodes)}
        return cls(
            tokens=[tokens[node] for node in nodes],
            parents=[places.get(parents[node], -1) for node in nodes],
            origins=[origin(row, node, depths[node]) if node else "" for node in nodes],
            path=[places[node] for node in verdict.paths[row]],
            bonus=verdict.bonuses[row],
            draft_ms=times_ms[0],
            verify_ms=times_ms[1],
        )
