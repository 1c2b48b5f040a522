"""Training texts: JSON lines of conversations or plain text, as token ids with a loss mask.

Record by record, so that files may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jakiro.errors import ConfigError, DataError

Message = dict[str, str]


@dataclass(frozen=True)
class Record:
    """One line of a data file: a conversation or a text, and where it stands."""

    place: str
    messages: list[Message] | None = None
    text: str = ""


@dataclass(frozen=True)
class Records:
    """The records of JSONL files: ``{"messages": [{"role", "content"}, ...]}`` or
    ``{"text": ...}``; other keys are ignored. Read anew in every iteration, never held together.
    Iterating raises ``DataError`` naming file and line."""

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[Record]:
        for path in self.paths:
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
