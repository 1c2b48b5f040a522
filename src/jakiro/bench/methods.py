"""From declared rows to engines on one loaded target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import jakiro
from jakiro.api import bundled_drafter, usable_drafters
from jakiro.bench.runner import EngineMethod
from jakiro.bench.suites import Row
from jakiro.drafters.registry import ENTRIES
from jakiro.engine.engine import Engine
from jakiro.errors import CheckpointError, PairMismatch


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes engines that share the target of ``plain``."""

    plain: Engine
    heads: Path | None = None
    """Its directories go before all other drafters of their names, below a ``+`` too."""
    max_batch_size: int = 1

    def open(self, row: Row) -> tuple[Row, EngineMethod]:
        """The row, with the digest of its weights, and its engine. Raises what ``jakiro.load``
        raises."""
        location = self._locate(row.drafter)
        engine = jakiro.load(
            self.plain.target.model,
            location,
            tokenizer=self.plain.tokenizer,
            tree=row.tree,
            rule=row.rule,
            noise_aware=row.noise_aware,
            max_batch_size=self.max_batch_size,
        )
        return replace(row, weights=_weights(location)), EngineMethod(row.name, engine)

    def open_found(
        self, rows: Iterable[Row]
    ) -> tuple[list[tuple[Row, EngineMethod]], dict[str, str]]:
        """Those of ``rows`` that are at hand, and why the others are not, by their names."""
        opened, missing = [], {}
        for row in rows:
            if not _directory(self._locate(row.drafter)):
                missing[row.name] = f"there is no checkpoint {row.drafter!r}; see --heads"
                continue
            try:
                opened.append(self.open(row))
            except (CheckpointError, PairMismatch) as error:
                missing[row.name] = str(error)
        return opened, missing

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


def _weights(location: str) -> str | None:
    """SHA-256 over the tensor files of a drafter; None for one without any."""
    directory = _directory(location)
    names = sorted(directory.glob("*.safetensors")) if directory else []
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        with name.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
