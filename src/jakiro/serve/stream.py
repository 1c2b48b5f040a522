"""Answers as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jakiro.engine.stream import Chunk
from jakiro.serve.answers import Drafting, Usage
from jakiro.serve.calls import Reader
from jakiro.serve.errors import ApiError
from jakiro.serve.forms import Form, Head, reason
from jakiro.serve.job import Choice, Job
from jakiro.serve.provenance import Provenance
from jakiro.serve.schema import Sampled
from jakiro.serve.tokens import Tokens

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@asynccontextmanager
async def listening(receive: Receive, job: Job) -> AsyncIterator[None]:
    """Give ``job`` up when its client leaves, or when this ends before the job does."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.abandon()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watcher.cancel()
        job.abandon()


class EventStream(StreamingResponse):
    """The response that streams a job."""

    def __init__(self, job: Job, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with listening(receive, self._job):
            await super().__call__(scope, receive, send)


async def whole(request: Request, job: Job, form: Form, asked: Sampled, head: Head) -> Any:
    """The answer of a job at once. Raises ``ApiError``."""
    async with listening(request.receive, job):
        return form.whole(head, asked, await job.completions(), job.usage)


async def events(
    job: Job, asked: Sampled, form: Form, head: Head, tokens: Tokens
) -> AsyncIterator[bytes]:
    """The events of a job: parts, the usage if asked for, ``[DONE]``. After the first one nothing
    but an event can tell of an error."""
    common = vars(head) | {"object": form.part_name}
    told = {choice: _Told(choice, form, asked, tokens) for choice in job.choices}

    def counted() -> Usage:
        return Usage.of(job.num_prompt_tokens, sum(each.num_tokens for each in told.values()))

    def event(choices: list[dict[str, Any]], is_last: bool = False) -> bytes:
        body = common | {"choices": choices}
        if asked.shows_usage:
            is_due = is_last or asked.counts_all_along
            body["usage"] = counted().model_dump() if is_due else None
        return _data(body)

    if form.opening is not None:
        for choice in job.choices:
            fields = form.opening | {"logprobs": None, "finish_reason": None}
            yield event([{"index": choice.index} | fields])
    try:
        async for choice, chunk in job.pieces():
            if (part := told[choice].part(chunk)) is not None:
                yield event([part])
        if asked.shows_usage:
            yield event([], is_last=True)
    except ApiError as error:
        job.abandon()
        yield _data(error.body())
    yield DONE


class _Told:
    """What a stream has said of one choice."""

    def __init__(self, choice: Choice, form: Form, asked: Sampled, tokens: Tokens) -> None:
        self._choice, self._form = choice, form
        self._reader = Reader(asked)
        self._provenance = Provenance(tokens) if asked.is_traced else None
        self._tokens = tokens
        self.num_tokens = self._num_chars = 0

    def part(self, chunk: Chunk) -> dict[str, Any] | None:
        """The part that carries a chunk; None if there is nothing to say yet."""
        request, done = self._choice.stream.request, chunk.completion
        start, self.num_tokens = self.num_tokens, self.num_tokens + len(chunk.token_ids)
        is_scored = request.params.logprobs is not None
        said = self._reader.read(chunk.text, done is not None)
        if not (said.text or said.calls or done or is_scored or self._provenance):
            return None
        part: dict[str, Any] = {"index": self._choice.index, **self._form.part(said)}
        part["logprobs"] = None
        if is_scored:
            entries = request.logprobs[start : self.num_tokens]
            part["logprobs"] = self._form.logprobs(entries, self._num_chars).model_dump()
            self._num_chars += sum(len(self._tokens.text(entry.token_id)) for entry in entries)
        part["finish_reason"] = None if done is None else reason(done, self._reader.num_calls)
        ours = {} if done is None else Drafting.of(done).model_dump()
        if self._provenance is not None:
            ours["trace"] = self._provenance.told(chunk)
        return part | ({"jakiro": ours} if ours else {})


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
