"""Draft heads on disk: ``config.json`` and ``model.safetensors`` in one directory.

``config.json`` holds the method and the sizes of the head, the fingerprint of the target it was
made for, free notes, and a digest of the tensors that the tensor file repeats: two files of
different saves do not load together. Each is written beside its place first: a full disk leaves the
old checkpoint, a kill the old one, the new one or, between the two replacements, a pair that is
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from jakiro.drafters import registry
from jakiro.drafters.base import Head
from jakiro.errors import CheckpointError, ConfigError, PairMismatch
from jakiro.hub.files import reading, replace_files

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 1


def save(
    head: Head,
    directory: Path,
    target_fingerprint: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write ``head`` to ``directory``, tensors in ``dtype``. ``extra`` is stored as notes. Files
    of other names in the directory stay. Raises ``CheckpointError`` when it cannot be written."""
    tensors = {
        name: tensor.detach()
        .to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in head.state_dict().items()
    }
    digest = _digest(tensors)
    config = {
        "format": FORMAT,
        "head": asdict(head.config),
        "target": dict(target_fingerprint),
        "weights": digest,
        "notes": dict(extra or {}),
    }
    replace_files(
        {
            Path(directory) / WEIGHTS_FILE: lambda path: path.write_bytes(
                serialise(tensors, metadata={"weights": digest})
            ),
            Path(directory) / CONFIG_FILE: lambda path: path.write_text(
                json.dumps(config, indent=2) + "\n"
            ),
        }
    )


def load(
    directory: Path,
    fingerprint: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Head:
    """The head in ``directory``, in ``dtype``, on the CPU, ready for inference: the network that
    the registry names for its method, of the sizes ``head.config``. With the ``fingerprint`` of a
    target, a head of another target raises ``PairMismatch``; anything missing, unexpected,
    misshapen or damaged ``CheckpointError``."""
    directory = Path(directory)
    config = read_config(directory)
    if fingerprint is not None:
        check_target(directory, config["target"], fingerprint)
    head = _build(directory, config["head"])
    tensors = _read_tensors(directory, config["weights"], head.state_dict())
    head.load_state_dict(tensors, strict=True, assign=True)
    return head.to(dtype).eval()


def holds_model(directory: Path) -> bool:
    """Whether ``directory`` is a model of ``transformers`` rather than a draft head. Raises
    ``CheckpointError`` where it is no checkpoint at all."""
    return "model_type" in _read_config(Path(directory))


def read_config(directory: Path) -> dict[str, Any]:
    """The content of ``config.json``: ``head`` sizes, ``target`` fingerprint, ``notes`` and more.
    Raises ``CheckpointError``."""
    path, config = Path(directory) / CONFIG_FILE, _read_config(Path(directory))
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not the config of a draft head of format {FORMAT}; "
            "save the head with this version or train it again"
        )
    kinds = {"head": dict, "target": dict, "weights": str}
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise CheckpointError(f"{path} lacks the entry {name!r} (a {kind.__name__})")
    if not isinstance(config.setdefault("notes", {}), dict):
        raise CheckpointError(f"{path}: notes must be a dict, got {config['notes']!r}")
    return config


class Advice(NamedTuple):
    """What a checkpoint recommends to the drafter that is made of it."""

    tree: str | None
    options: Mapping[str, Any]


def advice(directory: Path) -> Advice:
    """From the notes of the head in ``directory``. Raises ``CheckpointError``."""
    notes = read_config(directory).get("notes", {})
    return Advice(notes.get("tree"), notes.get("options", {}))


def digest(directory: Path) -> str | None:
    """SHA-256 over all of the checkpoint in ``directory`` that its drafter depends on: the tensor
    files, the settings of a head and what it recommends, or the config of a model. None where
    there are no tensors. Raises ``CheckpointError``."""
    directory = Path(directory)
    names = sorted(directory.glob("*.safetensors"))
    if not names:
        return None
    settings: Any = _read_config(directory)
    if not holds_model(directory):
        settings = [read_config(directory)["head"], *advice(directory)]
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in names:
        with name.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``CheckpointError``."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


@reading()
def _read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a head or a model."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"no checkpoint in {directory}: {CONFIG_FILE} is missing")
    return read_object(path)


def _build(directory: Path, settings: dict[str, Any]) -> Head:
    """A head of those settings; its random weights are about to be replaced."""
    path, method = directory / CONFIG_FILE, settings.get("method")
    entry = registry.ENTRIES.get(str(method))
    if entry is None or entry.head is None:
        known = [entry.name for entry in registry.ENTRIES.values() if entry.head]
        raise CheckpointError(f"{path}: unknown head method {method!r}; known: {', '.join(known)}")
    config, network = entry.load_head()
    allowed = {field.name for field in fields(config)}
    # A setting added since that save has a default under which the head is what it was.
    needed = {field.name for field in fields(config) if field.default is MISSING}
    if unexpected := sorted(set(settings) - allowed):
        raise CheckpointError(f"{path} has unknown head settings: {', '.join(unexpected)}")
    if missing := sorted(needed - set(settings)):
        raise CheckpointError(f"{path} lacks head settings: {', '.join(missing)}")
    try:
        built: Head = network(config(**settings))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return built


def _read_tensors(
    directory: Path, digest: str, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"no checkpoint in {directory}: {WEIGHTS_FILE} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_shapes(path, shapes, expected)
            stored = (file.metadata() or {}).get("weights")
            if stored != digest:
                raise CheckpointError(
                    f"{path} and {CONFIG_FILE} come from different saves "
                    f"({str(stored)[:12]} and {digest[:12]}); copy or save both again"
                )
            return {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error


def check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]
) -> None:
    """Raise ``CheckpointError``, naming them, unless the tensors at ``path`` are those expected."""
    if missing := sorted(set(expected) - set(shapes)):
        raise CheckpointError(f"{path} lacks tensors: {', '.join(missing)}")
    if unexpected := sorted(set(shapes) - set(expected)):
        raise CheckpointError(f"{path} has unexpected tensors: {', '.join(unexpected)}")
    for name, shape in shapes.items():
        if shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(shape)}, the config asks for "
                f"{list(expected[name].shape)}"
            )


def check_target(
    path: Path, stored: Mapping[str, Any], actual: Mapping[str, Any], role: str = "target"
) -> None:
    """Raise ``PairMismatch``, naming the difference, unless the fingerprint ``stored`` with the
    head at ``path`` is that of the ``actual`` target, or other model of that ``role``."""
    # In the order of the fingerprint: sizes say more than a hash.
    for name in {**actual, **stored}:
        mine, theirs = stored.get(name), actual.get(name)
        if mine != theirs:
            raise PairMismatch(
                f"the head in {path} was made for another {role}: {name} is {mine!r} there "
                f"and {theirs!r} in this {role}; use the {role} it was trained on, or train a "
                "head for this one"
            )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
