"""Let the target answer the prompts of the data: a head drafts best what it has seen said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jakiro.engine.engine import Engine
from jakiro.errors import CheckpointError, ConfigError, DataError, PromptError
from jakiro.sampling.params import SamplingParams
from jakiro.train.data import Message, Record

_GROUP = 64
"""Conversations answered together, and lost at most when the process is killed."""


def regenerate(
    engine: Engine,
    records: Sequence[Record],
    path: Path,
    params: SamplingParams,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Record]:
    """``records`` with every assistant turn rewritten by the engine's target, turn after turn;
    texts stay as they are. A conversation ends where the context does.

    Answers are kept in ``path`` (JSON lines), and a run that finds some goes on from there.
    ``report`` is told how many conversations are done, of how many.
    """
    conversations = [record for record in records if record.messages is not None]
    done = _stored(path, conversations)
    for start in range(len(done), len(conversations), _GROUP):
        report(start, len(conversations))
        group = conversations[start : start + _GROUP]
        answers = _answer(engine, group, params, start)
        _append(path, group, answers)
        done += answers
    report(len(conversations), len(conversations))
    answered = iter(done)
    for record in records:
        if record.messages is None:
            yield record
        elif messages := next(answered):
            yield Record(record.place, messages)


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
            return [_answered(draft) for draft in drafts]
        # Noise is keyed by seed and position, so every conversation needs a seed of its own.
        seeds = [(params.seed or 0) + first + row for row in rows]
        completions = engine.generate(prompts, [replace(params, seed=seed) for seed in seeds])
        for row, completion in zip(rows, completions, strict=True):
            drafts[row].append({"role": "assistant", "content": completion.text})
            if completion.finish_reason != "stop":
                rest[row].clear()


def _answered(messages: list[Message]) -> list[Message]:
    """``messages`` up to the last answer."""
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _append(path: Path, group: Sequence[Record], answers: Sequence[list[Message]]) -> None:
    """Keep the ``answers`` to ``group``; they outlive a kill of the process."""
    lines = [
        json.dumps({"place": record.place, "messages": messages}, ensure_ascii=False) + "\n"
        for record, messages in zip(group, answers, strict=True)
    ]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _stored(path: Path, conversations: Sequence[Record]) -> list[list[Message]]:
    """The answers already in ``path``; a last line cut short by a kill is removed."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    done = []
    for number, line in enumerate(whole.splitlines()):
        try:
            stored = json.loads(line)
            place, messages = stored["place"], stored["messages"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number + 1} is damaged; delete the file") from error
        if number >= len(conversations) or conversations[number].place != place:
            raise ConfigError(
                f"{path} holds answers to other data ({place}); give the same --data, or another "
                "--out"
            )
        done.append(messages)
    return done
