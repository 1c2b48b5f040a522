"""A head that is trained already, read to be written anew with something changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from jakiro.drafters.nn import DraftHead
from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.hub.convert.importing import check_free
from jakiro.hub.convert.source import widest
from jakiro.target.target import Target

DRAFT_IDS = "draft_ids"
"""The tensor that is no weight: which tokens a restricted head scores."""


@dataclass(frozen=True, eq=False)
class Finished:
    """``head`` in float32, or in float64 where it was kept so, the type ``dtype`` that its weights
    are kept in, its ``notes``, and the ``fingerprint`` of its target."""

    head: DraftHead
    dtype: torch.dtype
    notes: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path, target: Target, out: Path, change: str) -> Finished:
        """The head in ``directory``, to be ``change`` ("restricted") and written to ``out``.

        Raises:
            CheckpointError: the head is missing or damaged, ``out`` is taken.
            ConfigError: a head of another kind.
            PairMismatch: the head was made for another target.
        """
        check_free(out)
        fingerprint = target.fingerprint()
        head = checkpoint.load(directory, fingerprint)
        if not isinstance(head, DraftHead):
            raise ConfigError(
                f"a {head.config.method} head cannot be {change}; heads that predict features "
                "(jakiro, eagle2 and their kin) can"
            )
        stored = load_file(directory / checkpoint.WEIGHTS_FILE)
        dtype = widest({name: tensor for name, tensor in stored.items() if name != DRAFT_IDS})
        if dtype == torch.float64:
            head = cast(DraftHead, checkpoint.load(directory, fingerprint, dtype))
        notes = checkpoint.read_config(directory)["notes"]
        return cls(head, dtype, notes, fingerprint)

    def write(self, head: DraftHead, out: Path, notes: Mapping[str, Any]) -> None:
        """``head`` to ``out``; ``notes`` go before its own. Raises ``CheckpointError`` where that
        cannot be written."""
        kept = dict(self.notes) | dict(notes)
        checkpoint.save(head, out, self.fingerprint, kept, self.dtype)
