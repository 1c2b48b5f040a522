"""The answers to one HTTP request: started together, read together, given up together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from jakiro.engine.request import Completion
from jakiro.engine.stream import Chunk, Stream
from jakiro.serve.answers import Usage
from jakiro.serve.constrain import Constraint
from jakiro.serve.errors import ApiError, failed, not_begun, shutting_down
from jakiro.serve.metrics import Clock


@dataclass(eq=False)
class Choice:
    """One answer on its way."""

    index: int
    stream: Stream
    clock: Clock
    constraint: Constraint | None = None
    num_tokens: int = 0
    """That have been read."""
    done: Completion | None = None

    async def read(self) -> Chunk:
        """What is new; counted and timed."""
        chunk = await anext(self.stream)
        self.num_tokens += len(chunk.token_ids)
        self.clock.tokens(len(chunk.token_ids))
        if chunk.completion is not None:
            self.done = chunk.completion
            self.clock.end(chunk.completion)
        return chunk

    @property
    def problem(self) -> ApiError | None:
        """Why a finished answer is none."""
        assert self.done is not None
        if self.done.finish_reason in ("stop", "length"):
            return None
        if self.done.finish_reason == "deadline":
            return None if self.done.token_ids else not_begun()
        if self.done.finish_reason == "cancelled":
            return shutting_down()
        if self.constraint is not None and self.constraint.error:
            return ApiError(
                400,
                f"{self.constraint.field}: the schema is too complex to follow: "
                f"{self.constraint.error}",
                param=self.constraint.field,
            )
        return failed(self.done.error or "the request could not be finished")


class Job:
    """All choices of one request. They are read to their ends whether or not somebody listens, so
    what is counted is whole and what is held is given back."""

    def __init__(self, job_id: str, num_prompt_tokens: int, choices: Sequence[Choice]) -> None:
        self.job_id, self.num_prompt_tokens, self.choices = job_id, num_prompt_tokens, choices
        self.created = int(time.time())
        self.is_abandoned = False
        self._pieces: asyncio.Queue[tuple[Choice, Chunk]] = asyncio.Queue()

    async def read(self) -> None:
        """Read all choices to their ends."""
        await asyncio.gather(*(self._read(choice) for choice in self.choices))

    async def _read(self, choice: Choice) -> None:
        while choice.done is None:
            chunk = await choice.read()
            self._pieces.put_nowait((choice, chunk))

    async def pieces(self) -> AsyncIterator[tuple[Choice, Chunk]]:
        """The chunks of all choices as they come, to be taken once. Raises ``ApiError`` at the
        end of a choice that failed."""
        left = len(self.choices)
        while left:
            choice, chunk = await self._pieces.get()
            if chunk.completion is not None:
                left -= 1
                if choice.problem is not None:
                    raise choice.problem
            yield choice, chunk

    async def completions(self) -> list[Completion]:
        """All answers, whole. Raises as ``pieces``."""
        async for _ in self.pieces():
            pass
        return [choice.done for choice in self.choices if choice.done is not None]

    def abandon(self) -> None:
        """Nobody listens any more: cancel what is not finished."""
        for choice in self.choices:
            if choice.done is None:
                self.is_abandoned = True
                choice.stream.cancel()

    @property
    def usage(self) -> Usage:
        """Tokens read so far; choices of one prompt share it."""
        return Usage.of(self.num_prompt_tokens, sum(choice.num_tokens for choice in self.choices))
