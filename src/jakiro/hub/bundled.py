"""The models inside the package: a small target and the drafters that were trained for it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedModel

from jakiro.drafters import registry

BUNDLED_TARGET = "pico"


def is_bundled(target: str | Path | PreTrainedModel) -> bool:
    """By name, or loaded from the package's own directory before."""
    if isinstance(target, PreTrainedModel):
        return bool(target.name_or_path == str(_directory(BUNDLED_TARGET)))
    return target == BUNDLED_TARGET


def target_location(target: str | Path) -> str | Path:
    """Where a target is read from: of the bundled one's name its directory, else ``target``."""
    return _directory(BUNDLED_TARGET) if target == BUNDLED_TARGET else target


def bundled_drafter(name: str) -> Path:
    """Where the drafter of the bundled target is, if there is one."""
    return _directory(f"{BUNDLED_TARGET}-{name}")


def usable_drafters(target: str | Path | PreTrainedModel) -> list[str]:
    """The names that ``jakiro.load`` takes as drafter of ``target``, whatever it is: those that
    need nothing, and with the bundled target those that have a bundled checkpoint."""
    bundled = is_bundled(target)
    return [
        entry.name
        for entry in registry.ENTRIES.values()
        if entry.made_of == "nothing" or (bundled and bundled_drafter(entry.name).is_dir())
    ]


def _directory(name: str) -> Path:
    """Directory of a model inside the package."""
    return Path(str(files("jakiro") / "models" / name))
