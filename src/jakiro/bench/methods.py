"""From declared rows to engines on one loaded target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import jakiro
from jakiro.bench.runner import EngineMethod, TransformersMethod
from jakiro.bench.suites import TRANSFORMERS, UNTRAINED, Row
from jakiro.drafters.base import Drafter
from jakiro.drafters.registry import ENTRIES, find, of_models
from jakiro.engine.engine import Engine
from jakiro.errors import CheckpointError, PairMismatch
from jakiro.hub import checkpoint
from jakiro.hub.bundled import bundled_drafter, usable_drafters
from jakiro.hub.models import load_model

PROMPT_LOOKUP = {"prompt_lookup_num_tokens": 10}
"""Of ``transformers``: as many tokens as our own prompt lookup drafts."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes engines that share the target of ``plain``."""

    plain: Engine
    heads: Path | None = None
    """Its directories go before all other drafters of their names, below a ``+`` too."""
    max_batch_size: int = 1

    def open(self, row: Row) -> tuple[Row, EngineMethod]:
        """The row, with the digest of its checkpoint, and its engine. Raises what ``jakiro.load``
        raises."""
        name = row.drafter.removeprefix(UNTRAINED)
        location = self._locate(name)
        engine = jakiro.load(
            self.plain.target.model,
            location if name == row.drafter else self._untrained(location),
            tokenizer=self.plain.tokenizer,
            drafter_options=row.options or None,
            tree=row.tree,
            rule=row.rule,
            noise_aware=row.noise_aware,
            compile=row.compile,
            max_batch_size=self.max_batch_size,
        )
        directory = _directory(location) if name == row.drafter else None
        weights = None if directory is None else checkpoint.digest(directory)
        return replace(row, weights=weights), EngineMethod(row.name, engine)

    def open_found(
        self, rows: Iterable[Row]
    ) -> tuple[list[tuple[Row, EngineMethod]], dict[str, str]]:
        """Those of ``rows`` that are at hand, and why the others are not, by their names."""
        opened, missing = [], {}
        for row in rows:
            if not _directory(self._locate(row.drafter.removeprefix(UNTRAINED))):
                missing[row.name] = f"there is no checkpoint {row.drafter!r}; see --heads"
                continue
            try:
                opened.append(self.open(row))
            except (CheckpointError, PairMismatch) as error:
                missing[row.name] = str(error)
        return opened, missing

    def transformers(self, eos_ids: tuple[int, ...]) -> list[TransformersMethod]:
        """``model.generate`` as it is, with its prompt lookup, and with the draft model that is
        at hand as its assistant."""
        model = self.plain.target.model
        settings: dict[str, dict[str, Any]] = {"": {}, " prompt_lookup": PROMPT_LOOKUP}
        directory = _directory(self._locate(of_models().name))
        if directory is not None and directory.is_dir():
            assistant = load_model(directory, self.plain.target.dtype, self.plain.target.device)
            settings[" assistant"] = {"assistant_model": assistant}
        return [
            TransformersMethod(f"{TRANSFORMERS}{name}", model, eos_ids, more)
            for name, more in settings.items()
        ]

    def _untrained(self, location: str) -> Drafter:
        """A drafter with a fresh head of the sizes of the checkpoint at ``location``."""
        directory, target = _directory(location), self.plain.target
        if directory is None or not directory.is_dir():
            raise CheckpointError(f"there is no checkpoint {location!r} to take the sizes of")
        trained = checkpoint.load(directory, target.fingerprint())
        torch.manual_seed(0)
        head = type(trained)(trained.config)
        head.load_state_dict(dict(trained.named_buffers()), strict=False)
        head.to(device=target.device, dtype=target.dtype)
        drafter: Drafter = find(head.config.method).load()(head, target)
        return drafter

    def _locate(self, drafter: str) -> str:
        for before, name in (("", drafter), _split(drafter)):
            is_bare = Path(name).name == name
            if self.heads is not None and is_bare and (self.heads / name).is_dir():
                return f"{before}{self.heads / name}"
        return drafter


def usable_rows(target: str) -> list[Row]:
    """A row for every drafter that ``target`` has by name."""
    return [Row(name, name) for name in usable_drafters(target) if name != "none"]


def _split(location: str) -> tuple[str, str]:
    """What goes over a drafter, up to the last ``+``, and that drafter. A directory may have one in
    its name."""
    outer, plus, inner = location.partition("+")
    if not plus or Path(location).is_dir():
        return "", location
    before, name = _split(inner)
    return f"{outer}+{before}", name


def _directory(location: str) -> Path | None:
    """Where the checkpoint of a drafter (of the one below a ``+``) would be; None for what is
    neither a name nor a directory."""
    _, trained = _split(location)
    if trained in ENTRIES:
        return bundled_drafter(trained)
    return Path(trained) if Path(trained).is_dir() else None
