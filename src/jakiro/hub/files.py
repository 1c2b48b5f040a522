"""Files of the hub: a kill or a full disk leaves the old one or the new one, each whole, and what
the system does not let us read is an error of this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from jakiro.errors import CheckpointError, JakiroError

Writer = Callable[[Path], object]

SCRATCH = ".tmp"
"""Ending of a file that is being written; a kill may leave one, which the next save replaces."""


@contextmanager
def reading() -> Iterator[None]:
    """Within, what the system does not let us read is a ``CheckpointError``: a directory without
    permission, for example."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot read a file or directory ({error}); check the path and its permissions"
        ) from error


def replace_files(writers: Mapping[Path, Writer]) -> None:
    """Let every writer write beside its place, flush all to disk, then put them in place in order.

    Each file is replaced as a whole; a kill between two replacements leaves some old and some new.
    Raises ``CheckpointError`` when something cannot be written (then nothing was replaced) or put
    in its place; errors of this package that a writer raises and interrupts pass through.
    """
    scratches = {path: path.with_name(path.name + SCRATCH) for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(scratches[path])
            _flush(scratches[path])
        for path, scratch in scratches.items():
            os.replace(scratch, path)
            _flush(path.parent)
    except BaseException as error:
        for scratch in scratches.values():
            with suppress(OSError):
                scratch.unlink()
        if isinstance(error, JakiroError) or not isinstance(error, Exception):
            raise
        # Libraries have error types of their own; the system's error behind one says more.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"cannot save {path}: {reason}") from error


def _flush(path: Path) -> None:
    """Ask the disk to hold ``path`` (a file, or a directory's entries) before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
