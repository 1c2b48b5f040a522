"""From tasks to requests that fit a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jakiro.errors import PromptError

if TYPE_CHECKING:
    from jakiro.bench.workloads import Task
    from jakiro.engine.engine import Engine


def encode_tasks(
    engine: Engine, tasks: Sequence[Task], max_new_tokens: int, is_chat: bool | None
) -> tuple[list[tuple[str, list[int]]], dict[str, int]]:
    """(task, token ids) of every prompt that leaves room for ``max_new_tokens`` in the context,
    and how many of each task do not.

    Raises:
        PromptError: nothing is left.
    """
    from jakiro.bench.workloads import RandomTokens
    from jakiro.cli.session import as_prompt

    room = engine.target.context_length - max_new_tokens
    encoded: list[tuple[str, list[int]]] = []
    num_skipped: dict[str, int] = {}
    for task in tasks:
        for prompt in task.prompts:
            if isinstance(prompt, RandomTokens):
                ids = prompt.ids(engine.target.vocab_size)
            else:
                asked = prompt if isinstance(prompt, str) else as_prompt(engine, prompt, is_chat)
                ids = engine.encode(asked)
            if len(ids) <= room:
                encoded.append((task.name, ids))
            else:
                num_skipped[task.name] = num_skipped.get(task.name, 0) + 1
    if not encoded:
        raise PromptError(
            f"no prompt leaves room for {max_new_tokens} new tokens in a context of "
            f"{engine.target.context_length}; use shorter prompts or fewer new tokens"
        )
    return encoded, num_skipped
