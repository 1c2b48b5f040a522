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
        a depth of the tree) or ``bonus`` (the target's own). ``cycles``: the trees, with texts."""
        origins: list[tuple[str, int | None]] = [("first", None)] if self._last is None else []
        for cycle in chunk.cycles:
            origins += [("drafted", depth) for depth in range(1, len(cycle.path))]
            origins.append(("bonus", None))
        texts = self._tokens.pieces(self._last, chunk.token_ids)
        tokens = [
            {"id": token, "text": text, "how": how, "depth": depth}
            # An answer may end within what a cycle brought.
            for token, text, (how, depth) in zip(chunk.token_ids, texts, origins, strict=False)
        ]
        self._last = chunk.token_ids[-1] if chunk.token_ids else self._last
        cycles = [
            asdict(cycle) | {"texts": [self._tokens.text(token) for token in cycle.tokens]}
            for cycle in chunk.cycles
        ]
        return {"tokens": tokens, "cycles": cycles}
