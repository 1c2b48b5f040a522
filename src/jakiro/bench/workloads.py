"""Prompts to measure with: the shipped sets, and any JSONL file or directory of a user.

A line is a JSON object. The first of these fields that it has is the prompt:

``messages``  a conversation, up to its first user message
``turns``     a list of user messages; the first one is used
``question``  one user message
``prompt``    text to be continued as it stands
``text``      text to be continued as it stands
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jakiro.errors import DataError, UnknownName

Message = dict[str, str]
RANDOM = "random"
"""The set of prompts that no drafter can make anything of."""
_NUM_RANDOM = 80
"""As many as the other sets ship: five batches of 16."""


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """A prompt drawn token by token, evenly from any vocabulary."""

    size: int
    seed: int

    def ids(self, vocab_size: int) -> list[int]:
        chance = random.Random(self.seed)
        return [chance.randrange(vocab_size) for _ in range(self.size)]


TaskPrompt = str | list[Message] | RandomTokens
"""Text to be continued, a conversation for a chat template, or tokens at random."""


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts under one name."""

    name: str
    prompts: tuple[TaskPrompt, ...]


def shipped() -> list[str]:
    """Names of the task sets inside the package."""
    entries = (files("jakiro.bench") / "prompts").iterdir()
    files_there = [Path(entry.name).stem for entry in entries if entry.name.endswith(".jsonl")]
    return sorted([*files_there, RANDOM])


def load_tasks(sources: Sequence[str], limit: int | None = None) -> list[Task]:
    """The tasks of ``sources``, each a shipped name, a JSONL file or a directory of
    ``TASK/question.jsonl``; at most ``limit`` prompts of each task.

    Raises:
        UnknownName: neither a shipped set nor a path.
        DataError: a file or one of its lines cannot be used.
    """
    return [_cut(task, limit) for source in sources for task in _load(source)]


def select(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Those of ``tasks`` that are called so, in the order of ``names``."""
    return [task for name in names for task in tasks if task.name == name]


def plain_text(prompt: str | list[Message]) -> str:
    """A prompt without chat format: the messages, one per paragraph."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] for message in prompt)


def _cut(task: Task, limit: int | None) -> Task:
    return task if limit is None else Task(task.name, task.prompts[:limit])


def _load(source: str) -> Iterator[Task]:
    path = Path(source)
    if source == RANDOM:
        sizes = (32 + 96 * (seed % 4) // 3 for seed in range(_NUM_RANDOM))
        yield Task(source, tuple(RandomTokens(size, seed) for seed, size in enumerate(sizes)))
    elif source in shipped():
        lines = (files("jakiro.bench") / "prompts" / f"{source}.jsonl").read_text("utf-8")
        yield Task(source, tuple(_prompts(lines, source)))
    elif path.is_dir():
        found = sorted(path.glob("*/question.jsonl"))
        if not found:
            raise DataError(f"no task in {source!r}: expected files {source}/TASK/question.jsonl")
        for file in found:
            yield _read(file)
    elif path.is_file():
        yield _read(path)
    else:
        raise UnknownName("task", source, [*shipped(), "a JSONL file", "a directory of tasks"])


def _read(path: Path) -> Task:
    try:
        lines = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    name = path.parent.name if path.name == "question.jsonl" else path.stem
    return Task(name, tuple(_prompts(lines, str(path))))


def sources_of(tasks: Sequence[str]) -> list[str]:
    """Those of ``tasks`` that ship; without any, the two sets of code and mathematics."""
    return [task for task in tasks if task in shipped()] or ["humaneval", "gsm8k"]


def _prompts(lines: str, where: str) -> Iterator[TaskPrompt]:
    found = False
    for number, line in enumerate(lines.split("\n"), start=1):
        if line.strip():
            found = True
            yield _prompt(line, f"{where}, line {number}")
    if not found:
        raise DataError(f"{where} holds no prompt")


def _prompt(line: str, where: str) -> TaskPrompt:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for field, read in _READERS.items():
        if field in record:
            prompt = read(record[field])
            if not prompt:
                raise DataError(f"{where}: field {field!r} holds no prompt: {record[field]!r:.80}")
            return prompt
    raise DataError(f"{where}: no prompt; expected one of the fields {', '.join(_READERS)}")


def _first_exchange(value: Any) -> TaskPrompt | None:
    """Messages up to the first of the user; None unless all of them are well formed."""
    if not isinstance(value, list):
        return None
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict):
            return None
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": role, "content": content})
        if role == "user":
            return messages if content.strip() else None
    return None


def _question(value: Any) -> TaskPrompt | None:
    is_text = isinstance(value, str) and value.strip()
    return [{"role": "user", "content": value}] if is_text else None


def _first_turn(value: Any) -> TaskPrompt | None:
    return _question(value[0]) if isinstance(value, list) and value else None


def _text(value: Any) -> TaskPrompt | None:
    return value if isinstance(value, str) and value.strip() else None


_READERS: dict[str, Callable[[Any], TaskPrompt | None]] = {
    "messages": _first_exchange,
    "turns": _first_turn,
    "question": _question,
    "prompt": _text,
    "text": _text,
}
