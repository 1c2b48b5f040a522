"""The model behind the routes: what requests make of it, and how much of it at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import ParamSpec, TypeVar

from anyio.to_thread import run_sync

import jakiro
from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError, PromptError, check_int
from jakiro.serve import asking, logs
from jakiro.serve.constrain import Compiled, Grammars
from jakiro.serve.conversation import ChatMessage, Tool
from jakiro.serve.errors import ApiError, busy
from jakiro.serve.job import Choice, Job
from jakiro.serve.metrics import Metrics
from jakiro.serve.schema import (
    MAX_CHOICES,
    ChatRequest,
    CompletionRequest,
    Sampled,
)
from jakiro.serve.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """A scheduler with its names, limits and measurements. Used in the event loop only; what takes
    long (tokenizers, grammars) is done in threads. Raises ``ConfigError``."""

    def __init__(self, scheduler: Scheduler, settings: Settings) -> None:
        if scheduler.engine.tokenizer is None:
            raise ConfigError("a server needs a tokenizer; load the engine with tokenizer=")
        self.scheduler, self.engine, self.settings = scheduler, scheduler.engine, settings
        self.created = int(time.time())
        self.fingerprint = f"jakiro-{jakiro.__version__}"
        self.metrics = Metrics(settings.model_name, scheduler)
        if (limit := self.engine.limits.kv_tokens) is not None:
            # A draft, and a token each of prompt and answer.
            check_int("kv_tokens", limit, self.engine.policy.plan.budget + 2)
        room = self.max_model_len - 1
        self.max_prompt_tokens = min(settings.max_prompt_tokens or room, room)
        ends = sorted(self.engine.eos_ids)
        self._grammars = Grammars(self.engine.tokenizer, self.engine.target.vocab_size, ends)
        self._tokenizing = Lock()
        self._num_open = 0
        self._reading: set[asyncio.Task[None]] = set()

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self.engine.max_length

    async def chat(self, asked: ChatRequest) -> Job:
        """Start the answers to a conversation. Raises ``ApiError`` and what the engine raises."""
        self.check_model(asked.model)
        ids = await self.encode_conversation(asked.messages, asked.tools_told)
        self._check_length(ids, "messages")
        return await self._start("chatcmpl", asked, [ids])

    async def complete(self, asked: CompletionRequest) -> Job:
        """Start the answers to one or more prompts. Raises as ``chat``."""
        self.check_model(asked.model)
        num_choices = len(asked.prompts) * asked.num_choices
        if num_choices > MAX_CHOICES:
            told = f"{num_choices} answers at once are too many; ask for {MAX_CHOICES} at most"
            raise ApiError(400, told, param="prompt")
        prompts = []
        for prompt in asked.prompts:
            ids = await self._tokenized(self.engine.encode, prompt)
            self._check_length(ids, "prompt")
            prompts.append(ids)
        return await self._start("cmpl", asked, prompts)

    async def encode(self, text: str, is_special: bool) -> list[int]:
        """Token ids of a text, with or without the special tokens around it."""

        def work() -> list[int]:
            assert self.engine.tokenizer is not None
            return list(self.engine.tokenizer(text, add_special_tokens=is_special)["input_ids"])

        return await self._tokenized(work)

    async def encode_conversation(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool]
    ) -> list[int]:
        """Token ids of a conversation in the model's format. Raises ``PromptError``."""
        return await self._tokenized(asking.conversation_ids, self.engine, messages, tools)

    async def decode(self, ids: list[int]) -> str:
        """The text of token ids. Raises ``PromptError``."""
        size = self.engine.target.vocab_size
        if not all(0 <= token < size for token in ids):
            raise PromptError(f"token ids of this model are 0 to {size - 1}")
        assert self.engine.tokenizer is not None
        return await self._tokenized(self.engine.tokenizer.decode, ids)

    def check_model(self, name: str | None) -> None:
        """Raise ``ApiError`` if ``name`` is not what is served here."""
        served = self.settings.model_name
        if name not in (None, served):
            raise ApiError(
                404,
                f"there is no model {name!r} here; this server has {served!r}",
                param="model",
                code="model_not_found",
            )

    async def _start(self, kind: str, asked: Sampled, prompts: list[list[int]]) -> Job:
        num_choices = len(prompts) * asked.num_choices
        most = min(self.settings.max_open, self.scheduler.max_open)
        if num_choices > most:
            told = f"{num_choices} answers at once; this server makes {most} at most, ask for fewer"
            raise ApiError(400, told, param="n" if len(prompts) == 1 else "prompt")
        grammar = asking.grammar_of(asked, self.engine.tokenizer)
        compiled = None if grammar is None else await run_sync(self._grammars.compile, grammar)
        self._check_open(num_choices)
        self.scheduler.check_room(num_choices)
        choices = self._submitted(asked, prompts, compiled)
        job = Job(f"{kind}-{secrets.token_hex(12)}", sum(map(len, prompts)), choices)
        self._num_open += num_choices
        task = asyncio.ensure_future(self._follow(job))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        return job

    def _submitted(
        self, asked: Sampled, prompts: list[list[int]], compiled: Compiled | None
    ) -> list[Choice]:
        """All choices, handed to the scheduler; none if one of them is refused."""
        choices: list[Choice] = []
        deadlines = [each for each in (asked.deadline_s, self.settings.deadline_s) if each]
        try:
            for ids in prompts:
                params = asking.sampling_params(asked, self.max_model_len - len(ids))
                for number in range(asked.num_choices):
                    own = None if compiled is None else compiled.constraint(len(ids))
                    stream = self.scheduler.submit(
                        ids,
                        params,
                        processors=[] if own is None else [own],
                        choice_index=number,
                        deadline_s=min(deadlines, default=None),
                    )
                    choices.append(Choice(len(choices), stream, self.metrics.clock(), own))
        except BaseException:
            for choice in choices:
                choice.stream.cancel()
            raise
        return choices

    async def _follow(self, job: Job) -> None:
        """See a job to its end: its places are free again when the engine has let it go."""
        try:
            await job.read()
        finally:
            self._num_open -= len(job.choices)
        done = [choice.done for choice in job.choices if choice.done is not None]
        logs.event(
            "answered",
            id=job.job_id,
            abandoned=job.is_abandoned,
            finish=[completion.finish_reason for completion in done],
            errors=[completion.error for completion in done if completion.error],
            tau=[round(completion.stats.tau, 3) for completion in done],
            first_ms=[round(1e3 * (choice.clock.first_s or 0), 1) for choice in job.choices],
            total_ms=round(1e3 * max(choice.clock.seconds for choice in job.choices), 1),
            **job.usage.model_dump(),
        )

    def _check_open(self, num_more: int) -> None:
        limit = self.settings.max_open
        if self._num_open + num_more > limit:
            raise busy(f"{self._num_open} answers are on their way, and {limit} may be", 1.0)

    def _check_length(self, ids: list[int], param: str) -> None:
        if len(ids) > self.max_prompt_tokens:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens and this server takes "
                f"{self.max_prompt_tokens} at most; shorten it",
                param=param,
                code="context_length_exceeded",
            )

    async def _tokenized(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work`` with the tokenizer, in a thread; one at a time, as it may not be shared."""

        def alone() -> T:
            with self._tokenizing:
                return work(*args, **kwargs)

        return await run_sync(alone)
