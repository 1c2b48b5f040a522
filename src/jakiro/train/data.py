"""Training texts: JSON lines of conversations or plain text, as token ids with a loss mask."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jakiro.errors import ConfigError, DataError

Message = dict[str, str]
_POOL = 64
"""Batches whose samples are sorted by length together, so that little padding is needed."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded ``ids`` [B, T] int64, ``lengths`` [B] int64, ``carries_loss`` [B, T] bool, and
    ``indices`` [B] int64 of the samples."""

    ids: Tensor
    lengths: Tensor
    carries_loss: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Record:
    """One line of a data file: a conversation or a text, and where it stands."""

    place: str
    messages: list[Message] | None = None
    text: str = ""


def read(paths: Sequence[Path]) -> Iterator[Record]:
    """The records of JSONL files: ``{"messages": [{"role", "content"}, ...]}`` or
    ``{"text": ...}``; other keys are ignored. Raises ``DataError`` naming file and line."""
    for path in paths:
        try:
            with Path(path).open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _parse(line, f"{path}, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error


def _parse(line: str, place: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(value, dict) or ("messages" in value) == ("text" in value):
        raise DataError(f'{place}: needs either "messages" or "text", as {{"text": "..."}}')
    if "text" in value:
        if not isinstance(value["text"], str) or not value["text"]:
            raise DataError(f'{place}: "text" must be a non-empty string')
        return Record(place, text=value["text"])
    messages = value["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise DataError(f'{place}: "messages" must be a list of {{"role": str, "content": str}}')
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{place}: the conversation has no assistant message to learn from")
    return Record(place, messages)


class Samples:
    """Tokenised samples, all in memory: ids as int32, one bool per token for the loss."""

    def __init__(self, pieces: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> None:
        ids: list[NDArray[np.int32]] = []
        marks: list[NDArray[np.bool_]] = []
        for piece_ids, piece_marks in pieces:
            ids.append(np.asarray(piece_ids, np.int32))
            marks.append(np.asarray(piece_marks, np.bool_))
        if not ids:
            raise DataError("the data holds no sample with a token to learn from")
        self._ids, self._marks = ids, marks
        self.lengths = np.array([len(piece) for piece in ids])

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples ``indices``, padded on the right to the longest."""
        lengths = torch.from_numpy(self.lengths[list(indices)])
        ids = torch.zeros(len(indices), int(lengths.max()), dtype=torch.int64)
        marks = torch.zeros_like(ids, dtype=torch.bool)
        for row, index in enumerate(indices):
            ids[row, : lengths[row]] = torch.from_numpy(self._ids[index])
            marks[row, : lengths[row]] = torch.from_numpy(self._marks[index])
        return Batch(ids, lengths, marks, torch.tensor(indices))

    def split(self, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices for training and for evaluation, at most a fifth of all, drawn by ``seed``."""
        order = np.random.default_rng((seed, len(self))).permutation(len(self))
        count = min(held_out, len(self) // 5)
        return np.sort(order[count:]), np.sort(order[:count])

    def epoch(
        self, indices: NDArray[np.int64], batch_tokens: int, seed: tuple[int, ...]
    ) -> list[list[int]]:
        """``indices`` in batches of at most ``batch_tokens`` padded tokens (one sample at least),
        in an order that ``seed`` decides alone."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(indices)
        mean = self.lengths[indices].sum() / max(1, len(indices))
        pool = max(1, int(_POOL * batch_tokens / max(1, mean)))
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            current: list[int] = []
            part = order[start : start + pool]
            for index in part[np.argsort(self.lengths[part], kind="stable")].tolist():
                # Sorted by length, so the next sample is the longest of its batch.
                if current and (len(current) + 1) * self.lengths[index] > batch_tokens:
                    batches.append(current)
                    current = []
                current.append(index)
            batches.append(current)
        return [batches[place] for place in rng.permutation(len(batches))]


def tokenise(
    records: Iterable[Record], tokenizer: Any, length: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Samples of at most ``length`` tokens: (ids, which of them carry loss). Texts are cut into
    windows and carry loss everywhere; conversations are cropped and carry it on the assistant's
    words and their end token. Samples that are left without loss are dropped."""
    if not tokenizer.is_fast:
        raise ConfigError("training needs a fast tokenizer (one with character offsets)")
    for record in records:
        if record.messages is None:
            ids = tokenizer(record.text, verbose=False)["input_ids"]
            for start in range(0, len(ids), length):
                window = ids[start : start + length]
                if len(window) > 2:
                    yield window, [True] * len(window)
            continue
        for text, spans in _render(record, tokenizer):
            encoded = tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            marks = _marks(encoded["offset_mapping"], spans)[:length]
            # The loss needs two tokens before the first one it can reach.
            if any(marks[2:]):
                yield encoded["input_ids"][:length], marks


def _render(record: Record, tokenizer: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """The conversation through the chat template, with the character spans of the assistant.

    One text, if the template renders every turn as it did when the turn was the last; otherwise
    (templates that drop earlier reasoning) one text per assistant turn.
    """
    assert record.messages is not None
    turns: list[tuple[str, tuple[int, int]]] = []
    for number, message in enumerate(record.messages):
        if message["role"] != "assistant":
            continue
        try:
            before = tokenizer.apply_chat_template(
                record.messages[:number], tokenize=False, add_generation_prompt=True
            )
            text = tokenizer.apply_chat_template(record.messages[: number + 1], tokenize=False)
        except Exception as error:  # templates raise whatever they like
            raise DataError(f"{record.place}: the chat template refuses it ({error})") from error
        if not text.startswith(before):
            raise DataError(
                f"{record.place}: the chat template renders the prompt of turn {number + 1} "
                "otherwise once it is answered, so the answer cannot be located"
            )
        turns.append((text, (len(before), len(text))))
    whole = turns[-1][0]
    if all(whole.startswith(text) for text, _ in turns):
        return [(whole, [span for _, span in turns])]
    return [(text, [span]) for text, span in turns]


def _marks(offsets: Sequence[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Whether each token begins inside a span; both lists ascend."""
    marks, current = [], 0
    for start, _ in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        marks.append(current < len(spans) and start >= spans[current][0])
    return marks
