"""How every token of an answer came, for those who watch (the request's ``jakiro.trace``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jakiro.engine.stream import Chunk
from jakiro.serve.tokens import Tokens


class Provenance:
    """Follows one answer chunk by chunk."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._last: int | None = None

    def told(self, chunk: Chunk) -> dict[str, Any]:
        """``tokens``: what came, in order, each ``first`` (from the prompt alone), ``drafted`` (at
        a depth of the tree, by some part of the drafter) or ``bonus`` (the target's own).
        ``cycles``: the trees, with texts."""
        origins = [_own("first")] if self._last is None else []
        for cycle in chunk.cycles:
            for depth, node in enumerate(cycle.path[1:], start=1):
                origins.append({"how": "drafted", "depth": depth, "origin": cycle.origins[node]})
            origins.append(_own("bonus"))
        texts = self._tokens.pieces(self._last, chunk.token_ids)
        tokens = [
            {"id": token, "text": text, **origin}
            # An answer may end within what a cycle brought.
            for token, text, origin in zip(chunk.token_ids, texts, origins, strict=False)
        ]
        self._last = chunk.token_ids[-1] if chunk.token_ids else self._last
        cycles = [
            asdict(cycle) | {"texts": [self._tokens.text(token) for token in cycle.tokens]}
            for cycle in chunk.cycles
        ]
        return {"tokens": tokens, "cycles": cycles}


def _own(how: str) -> dict[str, Any]:
    """Of a token that the target itself chose."""
    return {"how": how, "depth": None, "origin": None}
