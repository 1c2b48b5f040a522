"""The directory of a run: its own, and one run's at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jakiro.errors import CheckpointError, ConfigError
from jakiro.hub.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from jakiro.train.trainer import HISTORY_FILE, STATE_FILE

LOCK_FILE = ".lock"
_OF_MODELS = (CONFIG_FILE, WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the directory ``out`` and hold it while a run writes there. Raises ``ConfigError`` where
    a model lies that no run has left there, which would be written over, or where another run is
    at work, and ``CheckpointError`` where nothing can be written."""
    try:
        found = [name for name in _OF_MODELS if (out / name).exists()]
        if found and not any((out / name).exists() for name in (HISTORY_FILE, STATE_FILE)):
            raise ConfigError(
                f"{out} holds a model that no training has left there ({', '.join(found)}) and "
                "that would be written over; give a new directory"
            )
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK_FILE)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"another run is writing to {out}; wait for its end, or give another directory"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error}") from error
    try:
        yield
    finally:
        lock.release()
