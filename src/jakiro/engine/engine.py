"""The engine: requests in, completions out."""

from __future__ import annotations

import reprlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from jakiro.drafters.base import Drafter, DraftNoise
from jakiro.engine.batch import Batch
from jakiro.engine.detokenize import Detokenizer
from jakiro.engine.limits import Limits
from jakiro.engine.policy import Fixed, Policy
from jakiro.engine.prompt import Prompt, PromptTokenizer, encode
from jakiro.engine.request import Completion, Request
from jakiro.engine.stats import Stats
from jakiro.engine.step import step
from jakiro.engine.stream import Chunk, Tail
from jakiro.errors import ConfigError, PairMismatch, PromptError, RowFailed
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import NO_FEATURES
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.typing import LogitsProcessor
from jakiro.verify import Rule

_CROWD = 64
"""Waiting requests before those that are over are looked for; then twice as many as were left."""


class Engine:
    """A target, a drafter and a rule, with the requests they work on. ``jakiro.load`` makes one.

    ``generate`` and ``stream`` are loops over ``submit`` and ``step``; several streams may be read
    in turn, they share the batch. ``stats`` are the times of all cycles and the counts of all
    requests that have left. Not for several threads at once.
    """

    def __init__(  # noqa: PLR0913  the settings of the public object, by keyword
        self,
        target: Target,
        drafter: Drafter,
        rule: Rule,
        *,
        plan: TreePlan | None = None,
        tokenizer: PromptTokenizer | None = None,
        eos_ids: Sequence[int] = (),
        max_batch_size: int = 8,
        noise: DraftNoise | None = None,
        policy: Callable[[TreePlan], Policy] = Fixed,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.rule = rule
        if drafter.needs != NO_FEATURES:
            target.check_features(drafter.needs)
        if (known := drafter.largest_token()) >= target.vocab_size:
            raise PairMismatch(
                f"the drafter {drafter.name} knows texts with token {known}, and the target has "
                f"tokens below {target.vocab_size}; make what it knows with this target's tokenizer"
            )
        self.plan = plan or drafter.plan
        if target.route == "chain":
            self.plan = TreePlan.chain(self.plan.depth)
        rule.check(self.plan, drafter.name, drafter.can_sample)
        if rule.is_sampled and noise is not None:
            raise ConfigError(
                f"the rule {rule.name} draws its drafts from a noise of their own; leave "
                "noise_aware as it is"
            )
        self.tokenizer = tokenizer
        self.stats = Stats()
        self.eos_ids = frozenset(eos_ids)
        self.policy = policy(self.plan)
        self._batch = Batch(target, self.policy, noise, draws=rule.draws)
        self.limits = Limits(max_batch_size)
        self._waiting: deque[Request] = deque()
        self._crowd = _CROWD
        self._is_stepping = False

    # -- whole answers ------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[Completion]:
        """Answer all ``prompts``, in their order. A failed request comes back with
        ``finish_reason == "error"``; the others are not disturbed. No prompt is started before all
        of them and their ``params`` (one for all, or one each) are found good.

        ``processors`` see unpadded ids [1 or more, T] and logits [.., V] before the temperature;
        also those of drafts. One that raises fails its request, if the answer gets to that text.

        Raises:
            ConfigError: a setting is impossible for this target, or ``params`` are none.
            PromptError: a prompt is empty, too long, or no text and no list of ids or messages.
        """
        if isinstance(prompts, str):
            raise ConfigError("prompts is a list; for one prompt write generate([prompt])")
        each = self._params_for(prompts, params)
        requests = [
            self.prepare(prompt, own, processors) for prompt, own in zip(prompts, each, strict=True)
        ]
        self._waiting.extend(requests)
        try:
            while any(request.finish_reason is None for request in requests):
                self.step()
        finally:
            self._give_up(requests)
        return [request.completion() for request in requests]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Iterator[Chunk]:
        """Answer one prompt piece by piece. Closing the iterator cancels the request.

        Raises, at the first piece, what ``generate`` raises, and in the end:
            RowFailed: the request could not be finished; what was good has been given out.
        """
        request = self.submit(prompt, params, processors=processors)
        tail = Tail(request)
        try:
            is_over = False
            while not is_over:
                # A neighbour's step may have finished this request; its last chunk is still due.
                if request.finish_reason is None:
                    self.step()
                chunk = tail.next()
                is_over = chunk.completion is not None
                yield chunk
            if request.error is not None:
                raise RowFailed(request.error)
        finally:
            self._give_up([request])

    # -- single steps -------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Request:
        """Queue a request; ``step`` until its ``finish_reason`` is set. Raises what ``generate``
        raises."""
        request = self.prepare(prompt, params, processors)
        self.enqueue(request)
        return request

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        processors: Sequence[LogitsProcessor] = (),
        choice_index: int = 0,
    ) -> Request:
        """A request that is checked but not queued. Unlike everything else here, it may be called
        while another thread is in ``step``. Raises what ``generate`` raises."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise ConfigError(
                f"params must be SamplingParams, got {reprlib.repr(params)}; write "
                "SamplingParams(max_new_tokens=64), of a dict SamplingParams(**settings)"
            )
        if not isinstance(processors, Sequence) or not all(map(callable, processors)):
            raise ConfigError(
                f"processors must be a list of callables, got {reprlib.repr(processors)}; write a "
                "single one as [processor]"
            )
        ids = self.encode(prompt)
        self.target.check_prompt(ids)
        self._batch.sampler.check(params)
        tokenizer = self.tokenizer
        if params.stop and tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; load with tokenizer=")
        end_ids = frozenset(params.stop_token_ids)
        seed = params.seed
        request = Request(
            prompt_ids=ids,
            params=params,
            seed=int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed,
            num_wanted=min(params.max_new_tokens, self.target.context_length - len(ids)),
            end_ids=end_ids if params.ignore_eos else end_ids | self.eos_ids,
            detokenizer=None if tokenizer is None else Detokenizer(tokenizer, params.stop, ids),
            processors=processors,
            choice_index=choice_index,
        )
        slots, limit = self._batch.num_slots(request), self.limits.kv_tokens
        if limit is not None and slots > limit:
            raise PromptError(
                f"prompt, answer and draft may need {slots} slots of the cache, but it may have "
                f"{limit} in all; shorten the prompt of {len(ids)} tokens or lower max_new_tokens"
            )
        return request

    def enqueue(self, request: Request) -> None:
        """Let a prepared request wait for its turn."""
        if len(self._waiting) >= self._crowd:
            # A request cancelled behind others would stay until its turn.
            self._waiting = deque(each for each in self._waiting if each.finish_reason is None)
            self._crowd = max(_CROWD, 2 * len(self._waiting))
        self._waiting.append(request)

    @property
    def limits(self) -> Limits:
        """How much it takes on at a time; may be replaced between steps."""
        return self._batch.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._batch.limits = limits

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer for which context and cache have room beside a draft."""
        context, limit = self.target.context_length, self.limits.kv_tokens
        return context if limit is None else min(context, limit - self.policy.plan.budget)

    @property
    def num_rows(self) -> int:
        """Requests being answered."""
        return len(self._batch.rows)

    @property
    def num_cached(self) -> int:
        """Tokens in the caches of all rows."""
        return sum(self._batch.cache.lengths)

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit what fits, run one cycle, let finished rows go. False: there is nothing to do.

        What is raised in between (out of memory, an interrupt) goes on to the caller.
        It ends the request being admitted or, in a cycle, the rows in flight with the reason
        ``error``; the engine can be used further.
        """
        self._is_stepping = True
        try:
            return self._step()
        finally:
            self._is_stepping = False

    def reset_stats(self) -> None:
        """Start the engine's totals anew."""
        self.stats = Stats()

    def encode(self, prompt: Prompt, **template: Any) -> list[int]:
        """Token ids of a prompt; a conversation goes through the chat template, which is given
        ``template`` too (``tools=...``).

        Raises:
            PromptError: the prompt is empty or of another kind, or there is no tokenizer for it.
        """
        return encode(self.tokenizer, prompt, template)

    def _step(self) -> bool:
        self._leave()
        self._admit()
        self._leave()
        if not self._batch.rows:
            return bool(self._waiting) or self._batch.filling is not None
        self._batch.policy.is_queued = bool(self._waiting)
        try:
            step(self._batch, self.target, self.drafter, self.rule.function, self.stats)
        except BaseException as error:
            self._count(self._batch.abandon(error, self.drafter))
            raise
        self._leave()
        return True

    def _admit(self) -> None:
        """Feed prompts: the one begun before, then those of waiting requests in their order. Who
        does not fit yet is not overtaken, so that nobody starves."""
        left = self.limits.prefill_chunk or sys.maxsize
        began = time.perf_counter()
        while left > 0 and (request := self._next()) is not None:
            left -= self._batch.fill(left, self.target, self.drafter)
            ended = time.perf_counter()
            request.stats.prefill_ms += 1e3 * (ended - began)
            self.stats.prefill_ms += 1e3 * (ended - began)
            began = ended

    def _next(self) -> Request | None:
        """The request whose prompt is to be fed, with a row; None: nobody can be admitted."""
        batch, waiting = self._batch, self._waiting
        if batch.filling is None:
            while waiting and waiting[0].finish_reason is not None:
                waiting.popleft()
            if not waiting or not batch.has_room(waiting[0]):
                return None
            self.drafter.check_free(batch)
            batch.open(waiting.popleft(), self.drafter)
        return batch.filling

    @torch.inference_mode()
    def _give_up(self, requests: Sequence[Request]) -> None:
        """Cancel what is not over; its rows leave now, or where a step is going on, with that: a
        stream may be closed anywhere, by a processor or when it is collected."""
        for request in requests:
            request.cancel()
        if not self._is_stepping:
            self._leave()

    def _leave(self) -> None:
        self._count(self._batch.leave(self.drafter))

    def _count(self, done: list[Request]) -> None:
        for request in done:
            self.stats.count_request(request.stats)

    def _params_for(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams | None]:
        if not isinstance(params, Sequence) or isinstance(params, str):
            return [params] * len(prompts)
        if len(params) != len(prompts):
            raise ConfigError(f"got {len(params)} sampling params for {len(prompts)} prompts")
        return list(params)
