"""Let the target answer the prompts of the data: a head drafts best what it has seen said."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from jakiro.engine.engine import Engine
from jakiro.errors import CheckpointError, ConfigError, DataError, PromptError
from jakiro.sampling.params import SamplingParams
from jakiro.train.data import Message, Record

_GROUP = 64
"""Conversations answered together, and lost at most when the process is killed."""


def regenerate(
    engine: Engine,
    records: Iterable[Record],
    path: Path,
    params: SamplingParams,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Record]:
    """``records`` with every answer rewritten by the engine's target, turn after turn; texts and
    what opens a conversation stay as they are. A conversation ends where the context does.
    ``records`` are iterated several times, and no more than a group of them is held. ``DataError``
    names the record whose prompt cannot be encoded.

    Answers are kept in ``path`` (JSON lines), and a run that finds some goes on from there; if they
    are of other conversations, settings or another target it raises ``ConfigError``.
    ``report`` is told how many conversations are done, of how many.
    """
    total = sum(1 for _ in _conversations(records))
    sign = _signer(engine, params)
    done = _count_stored(path, _conversations(records), sign)
    waiting = islice(_conversations(records), done, None)
    while group := list(islice(waiting, _GROUP)):
        report(done, total)
        _append(path, group, _answer(engine, group, params, done), sign)
        done += len(group)
    report(total, total)
    return answered(engine, records, path, params)


def answered(
    engine: Engine, records: Iterable[Record], path: Path, params: SamplingParams
) -> Iterator[Record]:
    """``records`` with the answers that ``regenerate`` has kept in ``path``; raises ``ConfigError``
    where another run wrote into it."""
    sign = _signer(engine, params)
    # There is no file when there was no conversation.
    with path.open("rb") if path.exists() else nullcontext(iter(())) as lines:
        numbers = count(1)
        for record in records:
            if record.messages is None:
                yield record
            elif messages := _stored(path, next(numbers), next(lines, b""), record, sign):
                yield Record(record.place, messages)


def _conversations(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if record.messages is not None)


def _answer(
    engine: Engine, group: Sequence[Record], params: SamplingParams, first: int
) -> list[list[Message]]:
    """New conversations for ``group``, turn by turn, all of the group at once."""
    drafts: list[list[Message]] = [[] for _ in group]
    rest = [list(record.messages or []) for record in group]
    while True:
        prompts, rows = [], []
        for row, (record, draft, waiting) in enumerate(zip(group, drafts, rest, strict=True)):
            # What opens the conversation answers nothing, whoever says it.
            while waiting and (not draft or waiting[0]["role"] != "assistant"):
                draft.append(waiting.pop(0))
            if not waiting:
                continue
            waiting.pop(0)
            try:
                ids = engine.encode(draft)
                if len(ids) >= engine.target.context_length:
                    waiting.clear()
                    continue
                engine.target.check_prompt(ids)
            except PromptError as error:
                raise DataError(f"{record.place}: {error}") from error
            prompts.append(ids)
            rows.append(row)
        if not prompts:
            return [_to_last_answer(draft) for draft in drafts]
        # Noise is keyed by seed and position, so every conversation needs a seed of its own.
        seeds = [(params.seed or 0) + first + row for row in rows]
        completions = engine.generate(prompts, [replace(params, seed=seed) for seed in seeds])
        for row, completion in zip(rows, completions, strict=True):
            drafts[row].append({"role": "assistant", "content": completion.text})
            if completion.finish_reason != "stop":
                rest[row].clear()


def _to_last_answer(messages: list[Message]) -> list[Message]:
    """``messages`` up to the last answer, which the first of them is not."""
    while len(messages) == 1 or (messages and messages[-1]["role"] != "assistant"):
        messages.pop()
    return messages


def _signer(engine: Engine, params: SamplingParams) -> Callable[[Record], str]:
    """A digest of all that an answer depends on: the conversation, the settings, the target."""
    common = json.dumps([repr(params), engine.target.fingerprint()])

    def sign(record: Record) -> str:
        return hashlib.sha256(f"{common}{json.dumps(record.messages)}".encode()).hexdigest()

    return sign


def _append(
    path: Path,
    group: Sequence[Record],
    answers: Sequence[list[Message]],
    sign: Callable[[Record], str],
) -> None:
    """Keep the ``answers`` to ``group``; they outlive a kill of the process."""
    lines = [
        json.dumps(
            {"place": record.place, "asked": sign(record), "messages": messages},
            ensure_ascii=False,
        )
        + "\n"
        for record, messages in zip(group, answers, strict=True)
    ]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _count_stored(
    path: Path, conversations: Iterator[Record], sign: Callable[[Record], str]
) -> int:
    """How many answers are in ``path``; a last line cut short by a kill is removed."""
    if not path.exists():
        return 0
    done, size = 0, 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                _stored(path, done + 1, line, next(conversations, None), sign)
                done, size = done + 1, size + len(line)
        # Even a file that keeps its size would be a changed one, to be tokenised again.
        if path.stat().st_size > size:
            os.truncate(path, size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return done


def _stored(
    path: Path, number: int, line: bytes, asked: Record | None, sign: Callable[[Record], str]
) -> list[Message]:
    """The answer in ``line``, the one of that ``number``; raises unless it is to ``asked``."""
    try:
        stored = json.loads(line)
        place, messages = stored["place"], list(stored["messages"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, line {number} is damaged; delete the file") from error
    if asked is None or stored.get("asked") != sign(asked):
        raise ConfigError(
            f"{path}, line {number} answers {place} of other data, to other settings or of another "
            "target, or a second run writes there too; go on as before, or give another --out"
        )
    return messages
