"""Training texts: JSON lines of conversations or plain text, as token ids with a loss mask.

Record by record, so that files may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
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
    Iterating raises ``DataError`` naming file and line, and for what cannot be read anew."""

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[Record]:
        for path in self.paths:
            try:
                if not S_ISREG(Path(path).stat().st_mode):
                    raise DataError(
                        f"{path} is no regular file, and data is read more than once; write it to "
                        "a file first"
                    )
                with Path(path).open(encoding="utf-8") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield _parse(line, f"{path}, line {number}")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"cannot read {path}: {error}") from error


def _parse(line: str, place: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(value, dict) or ("messages" in value) == ("text" in value):
        raise DataError(f'{place}: needs either "messages" or "text", as {{"text": "..."}}')
    if "text" in value:
        if not isinstance(value["text"], str) or not value["text"]:
            raise DataError(f'{place}: "text" must be a non-empty string')
        _check_unicode(value["text"], place)
        return Record(place, text=value["text"])
    messages = value["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise DataError(f'{place}: "messages" must be a list of {{"role": str, "content": str}}')
    if not any(message["role"] == "assistant" for message in messages[1:]):
        raise DataError(
            f"{place}: the conversation has no assistant message to learn from, for one that opens "
            "it answers nothing"
        )
    _check_unicode(messages, place)
    return Record(place, messages)


def _check_unicode(value: Any, place: str) -> None:
    """Refuse lone surrogates, which JSON can spell and no tokenizer can read."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {error.object[error.start]!r} is half of a character; write its other half "
            "beside it, or leave it out"
        ) from error


def check_fast(tokenizer: Any) -> None:
    """Raise ``ConfigError`` for a tokenizer that cannot tell the characters of a token."""
    if not tokenizer.is_fast:
        raise ConfigError(
            "training needs a fast tokenizer (one with character offsets), and "
            f"{type(tokenizer).__name__} is none; save a fast one beside the target"
        )


def tokenise(
    records: Iterable[Record], tokenizer: Any, length: int, vocab_size: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Samples of at most ``length`` tokens: (ids, which of them carry loss). Texts are cut into
    windows and carry loss everywhere; conversations are cropped and carry it on the assistant's
    answers and their end token. Samples that are left without loss are dropped. ``DataError`` names
    the record that cannot be tokenised, or has an id that is not below ``vocab_size``. The
    ``tokenizer`` has passed ``check_fast``."""
    for record in records:
        divided = _windows if record.messages is None else _turns
        for ids, marks in divided(record, tokenizer, length):
            if max(ids) >= vocab_size:
                raise DataError(
                    f"{record.place}: token id {max(ids)} is not in the vocabulary of the target "
                    f"(0 to {vocab_size - 1}); use the tokenizer of the target"
                )
            yield ids, marks


def _windows(record: Record, tokenizer: Any, length: int) -> Iterator[tuple[list[int], list[bool]]]:
    ids = _encode(record, record.text, tokenizer)["input_ids"]
    for start in range(0, len(ids), length):
        window = ids[start : start + length]
        if len(window) > 2:
            yield window, [True] * len(window)


def _turns(record: Record, tokenizer: Any, length: int) -> Iterator[tuple[list[int], list[bool]]]:
    for text, spans in _render(record, tokenizer):
        encoded = _encode(
            record, text, tokenizer, add_special_tokens=False, return_offsets_mapping=True
        )
        marks = _marks(encoded["offset_mapping"], spans)[:length]
        # The loss needs two tokens before the first one it can reach.
        if any(marks[2:]):
            yield encoded["input_ids"][:length], marks


def _encode(record: Record, text: str, tokenizer: Any, **settings: bool) -> Any:
    try:
        return tokenizer(text, verbose=False, **settings)
    except Exception as error:  # tokenizers raise whatever they like
        raise DataError(f"{record.place}: the tokenizer refuses it ({error})") from error


def _render(record: Record, tokenizer: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """The conversation through the chat template, with the character spans of the assistant's
    answers; a turn of the assistant that opens it answers nothing.

    One text, if the template renders every turn as it did when the turn was the last; otherwise
    (templates that drop earlier reasoning) one text per assistant turn.
    """
    assert record.messages is not None
    turns: list[tuple[str, tuple[int, int]]] = []
    for number, message in enumerate(record.messages):
        if number == 0 or message["role"] != "assistant":
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
