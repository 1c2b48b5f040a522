"""Measured costs on disk, so that a machine takes them once per pair."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jakiro.errors import CheckpointError
from jakiro.hub.files import replace_files

CACHE_VARIABLE = "JAKIRO_CACHE"
"""Environment variable: the directory to keep measurements in."""


def cache_directory() -> Path:
    """``$JAKIRO_CACHE``, else ``jakiro`` in the user's cache (``$XDG_CACHE_HOME``). Raises
    ``RuntimeError`` where the user has no home directory."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jakiro"


def read_costs(key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was kept for ``key``, plain data; None where nothing is, or the file is broken."""
    try:
        record = json.loads(_place(key).read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    is_whole = isinstance(record, dict) and record.get("key") == key
    costs = record.get("costs") if is_whole else None
    return costs if isinstance(costs, dict) else None


def keep_costs(key: Mapping[str, Any], costs: Mapping[str, Any]) -> None:
    """Keep ``costs`` for ``key``, both plain data. Where that cannot be written nothing happens:
    the next load measures again."""
    text = json.dumps({"key": key, "costs": costs}, indent=1) + "\n"
    with suppress(CheckpointError, RuntimeError):
        replace_files({_place(key): lambda path: path.write_text(text, "utf-8")})


def _place(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_directory() / f"costs-{digest[:24]}.json"
