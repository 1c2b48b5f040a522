"""A run as plain data: what was measured so far, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from jakiro.bench.environment import Environment
from jakiro.bench.foreign import Foreign
from jakiro.bench.settings import Place, Settings
from jakiro.bench.summary import Summary

SCHEMA = 2
"""Rises when a field of the JSON changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """All methods on one task at one temperature and batch size, measured in alternation."""

    task: str
    temperature: float
    batch_size: int
    prompts_sha256: str
    """Of the prompts' token ids, as ``summary.digest`` makes it."""
    num_skipped: int
    """Prompts that do not fit into the target's context."""
    commit: str | None
    date: str
    texts: list[str]
    """What plain decoding wrote: per prompt its token ids, as ``summary.written``."""
    methods: list[Summary]
    """Plain decoding first."""

    @property
    def place(self) -> Place:
        return Place(self.task, self.temperature, self.batch_size)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a reader needs to judge a figure or to take it again. Cells are appended as they
    are finished."""

    command: str
    environment: Environment
    settings: Settings
    not_measured: dict[str, str]
    """Rows and tasks that were asked for and are not at hand, with the reason."""
    cells: list[Cell]
    foreign: list[Foreign] = field(default_factory=list)
    """Other engines on the same tasks, from runs of their own."""

    def pending(self) -> Iterator[Place]:
        """The cells still to be measured."""
        done = {cell.place for cell in self.cells}
        return (place for place in self.settings.places() if place not in done)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}
