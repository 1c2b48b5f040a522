"""How much an engine takes on at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jakiro.errors import check_int


@dataclass(frozen=True, slots=True)
class Limits:
    """Raises ``ConfigError`` for values that are no integers or too small."""

    max_batch_size: int = 8
    """Requests decoded together; more wait."""
    prefill_chunk: int | None = None
    """Prompt tokens fed per step, so that a long prompt does not hold up the rows beside it; None:
    every prompt whole."""
    kv_tokens: int | None = None
    """Slots of the cache at most: its rows are as long as the longest, so n requests are in flight
    only if n times the worst case of the longest fits. None: as many as the rows come to need."""
    prefix_bytes: int = 0
    """Memory for what finished requests have fed, so that later ones with the same beginning need
    not. 0: no request takes anything over from another."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "prefix_bytes" else 1
            if value is not None or field.default is not None:
                check_int(field.name, value, least)
