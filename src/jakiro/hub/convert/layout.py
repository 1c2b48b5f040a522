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

    ``methods``: our methods whose heads it holds; an imported head is for the first.
    ``recognises`` looks at names only, and raises ``CheckpointError`` for a relative that is known
    and not supported. ``config`` reads the settings of the head off the tensors. ``formats`` gives
    the ``config.json`` of such a head for every format that may hold it, or raises
    ``CheckpointError``, saying why it cannot hold this one. ``left_out``: tensors that have no
    place in a head. ``files``: where the original code looks for the tensors, first where they are
    exported to. ``from_target``: what of ``config.json`` says something of the target.
    """

    title: str
    methods: tuple[str, ...]
    recognises: Callable[[Source], bool]
    config: Callable[[Source, Target], HeadSettings]
    formats: Mapping[str, Callable[[Any], Settings]]
    left_out: tuple[str, ...] = ()
    files: tuple[str, ...] = ("pytorch_model.bin",)
    from_target: tuple[str, ...] = (
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_position_embeddings",
    )
