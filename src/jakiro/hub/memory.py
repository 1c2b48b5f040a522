"""What drafters without training remember, on disk: one file of named integer arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from jakiro.errors import CheckpointError
from jakiro.hub.files import replace_files

Arrays = Mapping[str, npt.NDArray[np.int64]]


class Memory(Protocol):
    """Something that arrays can be made of, and made from."""

    kind: ClassVar[str]
    """What the file says it holds."""

    def arrays(self) -> dict[str, npt.NDArray[np.int64]]: ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self: ...


M = TypeVar("M", bound=Memory)


def save(memory: Memory, path: Path) -> None:
    """Write ``memory``; a kill or a full disk leaves what was there. Raises ``CheckpointError``."""
    data = serialise(memory.arrays(), metadata={"kind": memory.kind})
    replace_files({Path(path): lambda place: place.write_bytes(data)})


def load(kind: type[M], path: Path) -> M:
    """The memory of class ``kind`` in ``path``. Raises ``CheckpointError`` if the file is missing,
    damaged, or holds something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get("kind")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; build and save it again") from error
    if found != kind.kind:
        raise CheckpointError(f"{path} holds {found!r}, not {kind.kind!r}")
    try:
        return kind.from_arrays(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
