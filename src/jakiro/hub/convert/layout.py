"""What the file of a published layout says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jakiro.drafters.base import HeadSettings
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

Settings = dict[str, Any]
"""Entries of a ``config.json``."""


@dataclass(frozen=True)
class Layout:
    """One published form of a draft head.

    ``recognises`` looks at names only, and raises ``CheckpointError`` for a relative that is known
    and not supported. ``config`` reads the settings of the head off the tensors. ``formats`` gives
    the ``config.json`` of such a head for every format that may hold it, or raises
    ``CheckpointError``, saying why it cannot hold this one. ``renames``: parts of tensor names,
    ours and theirs. ``original_file``: where the original code looks for the tensors.
    """

    title: str
    method: str
    recognises: Callable[[Source], bool]
    config: Callable[[Source, Target], HeadSettings]
    formats: Mapping[str, Callable[[Any], Settings]]
    renames: tuple[tuple[str, str], ...] = ()
    original_file: str = "pytorch_model.bin"

    def ours(self, name: str) -> str:
        """Our name of a tensor of the layout."""
        for mine, theirs in self.renames:
            name = name.replace(theirs, mine)
        return name

    def theirs(self, name: str) -> str:
        """The layout's name of a tensor of ours."""
        for mine, theirs in self.renames:
            name = name.replace(mine, theirs)
        return name
