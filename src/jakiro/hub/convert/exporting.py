"""From a checkpoint of this package to what other programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from jakiro.errors import CheckpointError, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.convert.importing import LAYOUTS, check_free
from jakiro.hub.convert.layout import Layout
from jakiro.hub.convert.source import widest
from jakiro.hub.files import Writer, replace_files

FORMATS = ("original", "eagle-vllm")
"""``original``: what the authors' code of the method loads; ``eagle-vllm``: what vLLM's EAGLE path
loads, with a model class for Jakiro registered as ``EagleJakiroLlamaForCausalLM``."""

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
"""What of an imported ``config.json`` is handed on; the rest follows from the head."""


@dataclass(frozen=True)
class Exported:
    """What was written: method, format, type of the tensors, and the files."""

    method: str
    format: str
    dtype: str
    files: tuple[str, ...]


def export_head(directory: Path, out: Path, form: str) -> Exported:
    """Write the head in ``directory`` to ``out`` in the format ``form``, tensors bit by bit in the
    type they are stored in.

    Raises ``CheckpointError``: the head is missing or damaged, the format cannot hold it, ``out``
    is taken or cannot be written; ``UnknownName``: there is no such format.
    """
    check_free(out)
    config = checkpoint.load(directory).config  # checks sizes, names and digest
    tensors = load_file(directory / checkpoint.WEIGHTS_FILE)
    layout = _layout(config.method, form)
    dtype = str(widest(tensors)).removeprefix("torch.")
    imported = checkpoint.read_config(directory).get("notes", {}).get("original_config", {})
    kept = {name: imported[name] for name in _KEPT if name in imported}
    settings = kept | layout.formats[form](config) | {"torch_dtype": dtype}
    text = json.dumps(settings, indent=2) + "\n"
    weights = layout.original_file if form == "original" else checkpoint.WEIGHTS_FILE
    renamed = {layout.theirs(name): tensor for name, tensor in tensors.items()}
    replace_files(
        {
            out / weights: _writer(renamed, is_pickle=form == "original"),
            out / checkpoint.CONFIG_FILE: lambda path: path.write_text(text, "utf-8"),
        }
    )
    return Exported(config.method, form, dtype, (weights, checkpoint.CONFIG_FILE))


def _layout(method: str, form: str) -> Layout:
    """The layout that writes heads of ``method`` in ``form``."""
    if form not in FORMATS:
        raise UnknownName("format", form, list(FORMATS))
    for layout in LAYOUTS:
        if layout.method == method and form in layout.formats:
            return layout
    able = sorted(layout.method for layout in LAYOUTS if form in layout.formats)
    raise CheckpointError(
        f"the format {form} holds heads of {', '.join(able)}, but none of {method!r}"
    )


def _writer(tensors: dict[str, Tensor], is_pickle: bool) -> Writer:
    """Original code reads pickles first, and some of it nothing else."""
    if is_pickle:
        return lambda path: torch.save(tensors, path)
    return lambda path: path.write_bytes(serialise(tensors, metadata={"format": "pt"}))
