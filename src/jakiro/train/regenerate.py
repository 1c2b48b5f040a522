"""Let the target answer the prompts of the data: a head drafts best what it has seen said."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
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
    """``records`` with every assistant turn rewritten by the engine's target, turn after turn;
    texts stay as they are. A conversation ends where the context does. ``records`` are iterated
    several times, and no more than a group of them is held.

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
    return answered(records, path)


def answered(records: Iterable[Record], path: Path) -> Iterator[Record]:
    """``records`` with the answers that ``regenerate`` has kept in ``path``."""
    # There is no file when there was no conversation.
    with path.open(encoding="utf-8") if path.exists() else nullcontext(iter(())) as lines:
        for record in records:
            if record.messages is None:
                yield record
            elif messages := json.loads(next(lines))["messages"]:
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
        for row, (draft, waiting) in enumerate(zip(drafts, rest, strict=True)):
            while waiting and waiting[0]["role"] != "assistant":
                draft.append(waiting.pop(0))
            if not waiting:
                continue
            waiting.pop(0)
            ids = engine.encode(draft) if draft else []
            try:
                engine.target.check_prompt(ids)
            except PromptError:
                waiting.clear()
                continue
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
    """``messages`` up to the last answer."""
    while messages and messages[-1]["role"] != "assistant":
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
    count, size = 0, 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                _check_stored(path, count, line, next(conversations, None), sign)
                count, size = count + 1, size + len(line)
        os.truncate(path, size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return count


def _check_stored(
    path: Path, number: int, line: bytes, asked: Record | None, sign: Callable[[Record], str]
) -> None:
    """Raise unless ``line`` holds an answer to the conversation ``asked``."""
    try:
        stored = json.loads(line)
        place, _ = stored["place"], stored["messages"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, line {number + 1} is damaged; delete the file") from error
    if asked is None or asked.place != place:
        raise ConfigError(
            f"{path} holds answers to other data ({place}); give the same --data, or another --out"
        )
    if stored.get("asked") != sign(asked):
        raise ConfigError(
            f"{path} holds answers of another target, to other settings or to data that has "
            f"changed since ({place}); go on as before, or give another --out"
        )
