"""Writing files so that a kill or a full disk leaves the old ones or the new ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from jakiro.errors import CheckpointError, JakiroError

Writer = Callable[[Path], object]


def replace_files(writers: Mapping[Path, Writer]) -> None:
    """Let every writer write beside its place, flush all to disk, then put them in place in order.

    Each file is replaced as a whole; a kill between two replacements leaves some old and some new.
    Raises ``CheckpointError`` when something cannot be written (then nothing was replaced) or put
    in its place; errors of this package that a writer raises pass through.
    """
    scratches = {path: path.with_name(f"{path.name}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(scratches[path])
            _flush(scratches[path])
    except JakiroError:
        _remove(scratches.values())
        raise
    # Libraries have error types of their own; the system's error behind one says more.
    except Exception as error:
        _remove(scratches.values())
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"cannot save {path}: {reason}") from error
    try:
        for path, scratch in scratches.items():
            os.replace(scratch, path)
            _flush(path.parent)
    except OSError as error:
        _remove(scratches.values())
        raise CheckpointError(f"cannot save {path}: {error}") from error


def _remove(scratches: Iterable[Path]) -> None:
    for scratch in scratches:
        with suppress(OSError):
            scratch.unlink()


def _flush(path: Path) -> None:
    """Ask the disk to hold ``path`` (a file, or a directory's entries) before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
