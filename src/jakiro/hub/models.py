"""Language models and tokenizers of ``transformers``, from a directory or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from jakiro.errors import CheckpointError, ConfigError, PairMismatch
from jakiro.hub.files import reading, replace_files
from jakiro.target.target import Target

NOTES_FILE = "notes.json"

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns; a tokenizer of any family has one of them at least."""


def load_model(
    location: str | Path,
    dtype: str | torch.dtype,
    device: torch.device | None,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal LM in evaluation mode. Raises ``CheckpointError`` unless it is there, whole and of
    the shapes its config says."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            device_map=device_map,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (
        OSError, ValueError, RuntimeError, KeyError, SafetensorError, StrictDataclassError
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"cannot load a causal language model from {str(location)!r}: {first_line(error)}. "
            "Give a directory with config.json and weights, or a hub name"
        ) from error
    model, report = loaded
    shapes = (f"{name} has shape {list(is_)}" for name, is_, _ in report["mismatched_keys"])
    if wrong := sorted([*(f"{name} is missing" for name in report["missing_keys"]), *shapes]):
        raise CheckpointError(
            f"{len(wrong)} tensors in {str(location)!r} do not fit its config, the first: "
            f"{wrong[0]}; copy or save the model again"
        )
    placed: PreTrainedModel = model if device is None else model.to(device)
    return placed


def load_tokenizer(location: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model. Raises ``CheckpointError``."""
    advice = "Save one beside the weights, or give load(tokenizer=...)"
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot load the tokenizer of {str(location)!r}: {first_line(error)}. {advice}"
        ) from error
    # Where its files are missing, many families make one that knows no text.
    if found.get_vocab().keys() <= set(found.all_special_tokens):
        raise CheckpointError(f"there is no tokenizer in {str(location)!r}. {advice}")
    return found


def tokenizer_beside(location: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved beside a model; None where that is a directory with no file of one.
    Raises ``CheckpointError``."""
    return load_tokenizer(location) if may_have_tokenizer(location) else None


@reading()
def may_have_tokenizer(location: str | Path) -> bool:
    """Whether there is a file of a tokenizer; of a name on the hub that is not known."""
    place = Path(location)
    return not place.is_dir() or any(any(place.glob(name)) for name in _TOKENIZER_FILES)


@reading()
def check_tokenizer(location: str | Path) -> None:
    """Raise ``CheckpointError`` for a model's directory without a tokenizer, where text is to be
    read. What is no model is refused as such when it is loaded."""
    if (Path(location) / "config.json").is_file() and not may_have_tokenizer(location):
        raise CheckpointError(
            f"there is no tokenizer in {str(location)!r}, and commands and training read text; "
            "save one beside the weights. In Python jakiro.load takes it, for prompts of token ids"
        )


def save_model(
    model: PreTrainedModel,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as ``transformers`` does, with its tokenizer and ``notes.json`` beside it; each
    file whole or not at all. Files of other names stay. Raises ``CheckpointError``."""
    try:
        with TemporaryDirectory() as name:
            scratch = Path(name)
            model.save_pretrained(scratch)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
            (scratch / NOTES_FILE).write_text(json.dumps(dict(notes or {}), indent=2) + "\n")
            # Of several chat templates all but one are in a directory of their own.
            made = sorted(path for path in scratch.rglob("*") if path.is_file())
            replace_files(
                {directory / path.relative_to(scratch): partial(copyfile, path) for path in made}
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot save {directory}: its files could not be prepared in the directory for "
            f"temporary ones ({error}); make room there, or set TMPDIR"
        ) from error


def second_model(
    model: PreTrainedModel, target: Target, tokenizers: tuple[object, object], role: str
) -> Target:
    """A language model that reads and speaks as ``target`` does, beside it; ``tokenizers``: its own
    and that of the target, or None; ``role``: what it is, for messages. Raises ``ConfigError``, and
    ``PairMismatch`` where their tokens are not the same."""
    wrapped, what = Target(model), f"{role} {model.name_or_path or type(model).__name__!r}"
    if wrapped.device != target.device:
        raise ConfigError(
            f"{what} is on {wrapped.device} and the target on {target.device}; "
            "move one to the other"
        )
    sizes = (wrapped.vocab_size, target.vocab_size)
    check_vocabularies((sizes[0], tokenizers[0]), (sizes[1], tokenizers[1]), what)
    return wrapped


def check_vocabularies(other: tuple[int, object], target: tuple[int, object], what: str) -> None:
    """Raise ``PairMismatch`` unless the token ids of two models mean the same; ``what`` the other
    one is, for the message.

    Each is given by the number of its logits and its tokenizer. Where both are tokenizers of
    ``transformers`` the ids they share must be the same tokens, and the numbers may differ by
    padding; otherwise nothing but the numbers can be compared, and they must be equal.
    """
    (size, tokenizer), (wanted_size, wanted) = other, target
    advice = "use one that shares the tokenizer of the target"
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not isinstance(
        wanted, PreTrainedTokenizerBase
    ):
        if size != wanted_size:
            raise PairMismatch(
                f"{what} chooses among {size} tokens and the target among "
                f"{wanted_size}, and without both tokenizers it cannot be told whether the rest "
                f"is padding; {advice}, and give both with their tokenizers"
            )
        return
    mine, theirs = (
        {token_id: token for token, token_id in each.get_vocab().items()}
        for each in (tokenizer, wanted)
    )
    for token_id in sorted(mine.keys() & theirs.keys()):
        if mine[token_id] != theirs[token_id]:
            raise PairMismatch(
                f"{what} has another vocabulary: token {token_id} is "
                f"{mine[token_id]!r} there and {theirs[token_id]!r} in the target; {advice}"
            )


def first_line(error: BaseException) -> str:
    """What an error of a library says first; more lines are advice about other things. Where a
    name can be none of the hub, what is meant by it: a place that is not there. Where a config is
    refused, why."""
    if isinstance(error.__cause__, HFValidationError):
        return "there is no such directory"
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
