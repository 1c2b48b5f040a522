"""A foreign checkpoint as it lies on disk: a config and tensors by name.

Pickled files are read with ``weights_only=True``, always: a checkpoint from the net runs no code.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from jakiro.errors import CheckpointError
from jakiro.hub.checkpoint import CONFIG_FILE, read_object
from jakiro.hub.files import reading

USUAL_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Where ``transformers`` puts weights; an index names the files of its shards."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """What a directory holds: ``config`` is its ``config.json`` ({} where there is none)."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; ``CheckpointError`` if it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory} lacks the tensor {name}")
        return tuple(self.tensors[name].shape)

    def matrix(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix; ``CheckpointError`` if it is missing or none."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise CheckpointError(
                f"{self.directory}: the tensor {name} has shape {list(shape)}, not that of a matrix"
            )
        return shape[0], shape[1]


@reading()
def read_source(directory: Path, files: Sequence[str] = USUAL_FILES) -> Source:
    """Config and tensors of ``directory``, tensors in their own types, on the CPU, from the first
    of ``files`` that is there.

    Raises ``CheckpointError``: no directory, no weights in it, something unreadable, damaged or
    incomplete, objects that are no tensors, or tensors that are no floating-point numbers.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory; give the directory of a downloaded checkpoint, "
            f"with {CONFIG_FILE} and weights in it"
        )
    config = read_object(directory / CONFIG_FILE) if (directory / CONFIG_FILE).is_file() else {}
    if {"format", "head", "target"} <= set(config):
        raise CheckpointError(
            f"{directory} is a checkpoint of this package already; use it with --drafter, or "
            "write it for others with jakiro export"
        )
    present = [directory / name for name in files if (directory / name).is_file()]
    if not present:
        raise CheckpointError(f"no weights in {directory}; expected one of {', '.join(files)}")
    weights = present[0]
    tensors = _read_shards(weights) if weights.suffix == ".json" else _read_file(weights)
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{weights}: the tensor {name} is of type {tensor.dtype}; only float16, bfloat16, "
                "float32 and float64 can be converted (is the checkpoint quantised?)"
            )
    return Source(directory, config, tensors)


def widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest type that holds every tensor exactly."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of an index, each from the file it names."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} lacks the entry 'weight_map' (tensor to file)")
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        path = index.parent / file
        if path.parent != index.parent or not path.is_file():
            raise CheckpointError(f"{index} names the file {file!r}, which is not beside it")
        tensors |= _read_file(path)
    if missing := sorted(set(places) - set(tensors)):
        raise CheckpointError(f"no file of {index} holds the tensors {', '.join(missing[:8])}")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one file."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: git lfs pull")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds objects besides tensors, which could run code when "
            "read; save its state dict alone, best as safetensors"
        ) from error
    # A damaged pickle makes its reader raise whatever it runs into.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no tensors by name (a {type(content).__name__})")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: the entry {name!r} is a {type(tensor).__name__}, not a tensor; save the "
                "state dict of the head alone"
            )
    # Pickled tensors may be views of one storage, which safetensors does not write.
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in content.items()
    }
