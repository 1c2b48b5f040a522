"""Suffix automata: of a text that grows, and of a finished corpus.

The automaton of a text has a state per set of end positions, at most two per token; appending a
token is amortised constant time (Blumer et al. 1985).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jakiro.errors import CheckpointError

Array = npt.NDArray[np.int64]


class OnlineAutomaton:
    """The suffix automaton of a growing text.

    ``match``: length of the longest suffix of the text that also ends earlier. ``follow``: index
    of the token after such an earlier end, the latest one at which that suffix was the match
    (else its first end).
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.match = self.follow = 0
        self.edges: list[dict[int, int]] = [{}]
        self.links = [-1]
        self.lengths = [0]
        self._after = [0]
        self._last = 0

    def extend(self, token: int) -> None:
        """Append ``token``: amortised O(1)."""
        self.text.append(token)
        size = len(self.text)
        state, new = self._last, self._add({}, size, size)
        while state >= 0 and token not in self.edges[state]:
            self.edges[state][token] = new
            state = self.links[state]
        link = 0 if state < 0 else self._stretch(state, token)
        self.links[new], self._last = link, new
        # The new state holds the suffixes that end only here; the others are in the states along
        # its links, the longest of them being the longest string of the first.
        self.match, self.follow = self.lengths[link], self._after[link]
        if link:
            self._after[link] = size

    def _stretch(self, state: int, token: int) -> int:
        """The state of the longest string of ``state`` plus ``token``, split off where its state
        holds longer ones."""
        found, length = self.edges[state][token], self.lengths[state] + 1
        if self.lengths[found] == length:
            return found
        clone = self._add(dict(self.edges[found]), length, self._after[found])
        self.links[clone], self.links[found] = self.links[found], clone
        while state >= 0 and self.edges[state].get(token) == found:
            self.edges[state][token] = clone
            state = self.links[state]
        return clone

    def _add(self, edges: dict[int, int], length: int, after: int) -> int:
        self.edges.append(edges)
        self.links.append(0)
        self.lengths.append(length)
        self._after.append(after)
        return len(self.links) - 1


@dataclass(frozen=True, eq=False)
class CorpusAutomaton:
    """The finished automaton of a corpus, S states and E edges, as flat int64 arrays.

    ``starts`` [S+1]: the edges of state s are ``starts[s] .. starts[s+1]``, by ascending token;
    ``tokens``, ``targets`` [E]; ``links``, ``lengths``, ``counts`` [S], a count being how often the
    strings of a state occur. Make one with ``of``; ``jakiro.hub.memory`` keeps it on disk.
    """

    kind = "suffix automaton of a corpus"

    starts: Array
    tokens: Array
    targets: Array
    links: Array
    lengths: Array
    counts: Array

    @classmethod
    def of(cls, documents: Iterable[Iterable[int]]) -> CorpusAutomaton:
        """Of tokenised documents; no match goes over the end of one. While it is built, some 500
        bytes per token are needed."""
        online = OnlineAutomaton()
        for document in documents:
            for token in document:
                online.extend(token)
            online.extend(_END)
        # Each prefix of the text ends once where it ends, and so do all its suffixes.
        counts, state = np.zeros(len(online.links), np.int64), 0
        for token in online.text:
            state = online.edges[state][token]
            counts[state] += 1
        for state in sorted(range(1, len(counts)), key=online.lengths.__getitem__, reverse=True):
            counts[online.links[state]] += counts[state]
        ordered = [sorted((t, s) for t, s in edges.items() if t != _END) for edges in online.edges]
        flat = np.array([edge for edges in ordered for edge in edges], np.int64).reshape(-1, 2)
        return cls(
            starts=np.cumsum([0, *map(len, ordered)], dtype=np.int64),
            tokens=flat[:, 0].copy(),
            targets=flat[:, 1].copy(),
            links=np.array(online.links, np.int64),
            lengths=np.array(online.lengths, np.int64),
            counts=counts,
        )

    def arrays(self) -> dict[str, Array]:
        """What must be kept."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> CorpusAutomaton:
        """The inverse of ``arrays``; ``CheckpointError`` if they do not belong together."""
        if set(arrays) != set(cls.__dataclass_fields__):
            raise CheckpointError(f"expected {list(cls.__dataclass_fields__)}, got {list(arrays)}")
        found = cls(**arrays)
        num_states, num_edges = len(found.links), len(found.tokens)
        sizes = [len(found.starts) - 1, len(found.lengths), len(found.counts)]
        fits = sizes == [num_states] * 3 and len(found.targets) == num_edges
        if not (fits and num_states and int(found.starts[-1]) == num_edges):
            raise CheckpointError("its arrays do not fit each other; build it again")
        return found

    def advance(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The state and length of the longest match after ``token``, from those before it."""
        while (found := self._step(state, token)) is None and state:
            state = int(self.links[state])
            length = int(self.lengths[state])
        return (0, 0) if found is None else (found, length + 1)

    def children(self, state: int, width: int) -> list[tuple[float, int, int]]:
        """The ``width`` likeliest continuations: relative frequency, token, state."""
        edges = slice(int(self.starts[state]), int(self.starts[state + 1]))
        tokens, targets = self.tokens[edges], self.targets[edges]
        counts = self.counts[targets]
        best = np.argsort(-counts, kind="stable")[:width]
        shares = counts[best] / self.counts[state]
        columns = shares.tolist(), tokens[best].tolist(), targets[best].tolist()
        return list(zip(*columns, strict=True))

    def _step(self, state: int, token: int) -> int | None:
        begin, end = int(self.starts[state]), int(self.starts[state + 1])
        edge = begin + int(np.searchsorted(self.tokens[begin:end], token))
        is_there = edge < end and self.tokens[edge] == token
        return int(self.targets[edge]) if is_there else None


_END = -1
"""Ends a document; no token has this id."""
