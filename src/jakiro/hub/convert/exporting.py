"""From a checkpoint of this package to what other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor
from transformers import AutoConfig

from jakiro.errors import CheckpointError, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.convert.importing import LAYOUTS, check_free
from jakiro.hub.convert.layout import Layout
from jakiro.hub.convert.source import widest
from jakiro.hub.files import Writer, replace_files
from jakiro.hub.models import first_line

FORMATS = ("original", "eagle-vllm")
"""``original``: what the authors' code of the method loads; ``eagle-vllm``: what vLLM's EAGLE path
loads, with the model class of ``jakiro.integrations.vllm`` where its own does not fit."""


@dataclass(frozen=True)
class Exported:
    """What was written: method, format, type of the tensors, and the files."""

    method: str
    format: str
    dtype: str
    files: tuple[str, ...]


def export_head(
    directory: Path, out: Path, form: str, target: str | Path | None = None
) -> Exported:
    """Write the head in ``directory`` to ``out`` in the format ``form``, tensors bit by bit in the
    type they are stored in. Context length and special tokens, which no head has, are those of
    ``target`` (a directory or a hub name, of which only the config is read), else those of the
    ``config.json`` the head was imported with.

    Raises:
        CheckpointError: the head is missing or damaged, the format cannot hold it, ``target`` has
            no config, ``out`` is taken or cannot be written.
        PairMismatch: the head was made for another target.
        UnknownName: there is no such format.
    """
    check_free(out)
    config = checkpoint.load(directory).config  # checks sizes, names and digest
    tensors = load_file(directory / checkpoint.WEIGHTS_FILE)
    layout = _layout(config.method, form)
    dtype = str(widest(tensors)).removeprefix("torch.")
    settings = (
        _handed_on(layout.from_target, directory, target)
        | layout.formats[form](config)
        | {"torch_dtype": dtype}
    )
    text = json.dumps(settings, indent=2) + "\n"
    weights = layout.files[0] if form == "original" else checkpoint.WEIGHTS_FILE
    replace_files(
        {
            out / weights: _writer(tensors, is_pickle=form == "original"),
            out / checkpoint.CONFIG_FILE: lambda path: path.write_text(text, "utf-8"),
        }
    )
    return Exported(config.method, form, dtype, (weights, checkpoint.CONFIG_FILE))


def _handed_on(names: Sequence[str], directory: Path, target: str | Path | None) -> dict[str, Any]:
    """Those entries of the target, or of the ``config.json`` of the import, that are known."""
    known = checkpoint.read_config(directory)
    source: Mapping[str, Any] = known.get("notes", {}).get("original_config", {})
    if target is not None:
        try:
            source = AutoConfig.from_pretrained(target).get_text_config().to_dict()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"cannot read the config of the target {str(target)!r}: {first_line(error)}"
            ) from error
        stored, actual = (
            {name: each.get(name) for name in ("model_type", "hidden_size")}
            for each in (known["target"], source)
        )
        checkpoint.check_target(directory, stored, actual)
        source = {**source, "base_model_name_or_path": str(target)}
    return {name: source[name] for name in names if source.get(name) is not None}


def _layout(method: str, form: str) -> Layout:
    """The layout that writes heads of ``method`` in ``form``."""
    if form not in FORMATS:
        raise UnknownName("format", form, list(FORMATS))
    for layout in LAYOUTS:
        if method in layout.methods and form in layout.formats:
            return layout
    able = sorted(name for layout in LAYOUTS if form in layout.formats for name in layout.methods)
    raise CheckpointError(
        f"the format {form} holds heads of {', '.join(able)}, but none of {method!r}"
    )


def _writer(tensors: dict[str, Tensor], is_pickle: bool) -> Writer:
    """Original code reads pickles first, and some of it nothing else."""
    if is_pickle:
        return lambda path: torch.save(tensors, path)
    return lambda path: path.write_bytes(serialise(tensors, metadata={"format": "pt"}))
