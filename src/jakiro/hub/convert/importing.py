"""From a checkpoint of others to one of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jakiro.drafters import registry
from jakiro.drafters.base import Head, HeadSettings
from jakiro.errors import CheckpointError
from jakiro.hub import checkpoint
from jakiro.hub.convert import eagle, jakiro, jakiro_star, medusa
from jakiro.hub.convert.layout import Layout
from jakiro.hub.convert.source import USUAL_FILES, Source, widest
from jakiro.hub.files import SCRATCH, reading
from jakiro.target.target import Target

LAYOUTS = (jakiro.LAYOUT, jakiro_star.LAYOUT, eagle.LAYOUT, medusa.LAYOUT)
"""Every layout that is understood, in the order of asking."""

FILES = tuple(dict.fromkeys((*USUAL_FILES, *(file for layout in LAYOUTS for file in layout.files))))
"""Where weights are looked for, in this order."""

_SHOWN = 12


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint: ``left_out`` names the tensors that have no place in a head."""

    layout: str
    method: str
    dtype: str
    num_parameters: int
    left_out: tuple[str, ...]


@reading()
def check_free(out: Path) -> None:
    """Raise ``CheckpointError`` unless ``out`` is new, or a directory with nothing in it but what a
    save that was killed may leave."""
    if out.is_dir() and all(path.suffix == SCRATCH for path in out.iterdir()):
        return
    if out.exists():
        raise CheckpointError(f"{out} exists already; give a new directory, or remove it first")


def recognise(source: Source) -> Layout:
    """The layout of a checkpoint; ``CheckpointError``, naming tensors, if none is known."""
    for layout in LAYOUTS:
        if layout.recognises(source):
            return layout
    names = sorted(source.tensors)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    known = ", ".join(layout.title for layout in LAYOUTS)
    raise CheckpointError(
        f"{source.directory} has no layout that is known ({known}); its tensors are "
        f"{', '.join(names[:_SHOWN])}{more}"
    )


def import_head(source: Source, layout: Layout, target: Target, out: Path) -> Imported:
    """Write ``source``, recognised as ``layout``, to ``out`` as a head for ``target``. Tensors keep
    their values bit by bit, in the narrowest type that holds them all.

    Raises:
        CheckpointError: a tensor is missing, unknown or misshapen, settings contradict the tensors
            or cannot be held, ``out`` is taken or cannot be written.
        PairMismatch: the head was made for another target.
        TargetRefused: the target does not show its features.
    """
    check_free(out)
    target.check_features()
    config = layout.config(source, target)
    left_out = tuple(name for name in layout.left_out if name in source.tensors)
    tensors = {name: source.tensors[name] for name in source.tensors if name not in left_out}
    dtype = widest(tensors)
    head = _filled(config, tensors, source.directory)
    notes = {"imported": layout.title, "original_config": dict(source.config)}
    checkpoint.save(head, out, target.fingerprint(), notes, dtype)
    count = sum(tensor.numel() for tensor in tensors.values())
    name = str(dtype).removeprefix("torch.")
    return Imported(layout.title, config.method, name, count, left_out)


def _filled(config: HeadSettings, tensors: dict[str, Tensor], directory: Path) -> Head:
    """A head of those settings that holds exactly those tensors."""
    _, network = registry.find(config.method).load_head()
    with torch.device("meta"):
        head: Head = network(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    checkpoint.check_shapes(directory, shapes, head.state_dict())
    head.load_state_dict(tensors, strict=True, assign=True)
    return head
