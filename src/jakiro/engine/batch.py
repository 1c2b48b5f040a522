"""The rows that are decoded together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import compress

import torch
from torch import Tensor

from jakiro.cache.kv_cache import KVRow
from jakiro.drafters.base import Drafter, DraftNoise, DraftRequest
from jakiro.engine.limits import Limits
from jakiro.engine.policy import DraftLimits, Policy
from jakiro.engine.prefix import NOTHING, Prefix, PrefixStore, num_common
from jakiro.engine.request import Request, TokenLogprobs
from jakiro.engine.trace import Cycle
from jakiro.sampling.draws import DraftDraws
from jakiro.sampling.process import NodeView, Sampler
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

_FIRST_ROOM = 256
"""Slots for an answer to start with; later its row grows by halves."""


@dataclass
class _Filling:
    """A request of which a part of the prompt is in the cache; what its drafter takes over, and
    the features [T, F] of the parts that were fed."""

    request: Request
    draft: KVRow
    features: list[Tensor] = field(default_factory=list)


class Batch:
    """Requests in flight with their cache and sampling state; row i is the same everywhere."""

    def __init__(
        self,
        target: Target,
        policy: Policy,
        noise: DraftNoise | None = None,
        *,
        draws: type[DraftDraws] | None = None,
    ) -> None:
        self.limits = Limits()
        self.cache = target.new_cache()
        self.sampler = Sampler(target.vocab_size, target.device)
        self.rows: list[Request] = []
        self.prefixes = PrefixStore()
        self._filling: _Filling | None = None
        self.policy = policy
        self._draft_limits: DraftLimits | None = None
        self._noise = noise or self.sampler
        self._draws = self.sampler.sampled_drafts(draws) if draws else None
        self._device = target.device

    @property
    def filling(self) -> Request | None:
        """The request whose prompt is being fed; its row is the one after ``rows``."""
        return None if self._filling is None else self._filling.request

    def num_slots(self, request: Request) -> int:
        """Slots of the cache that ``request`` may come to need."""
        return len(request.prompt_ids) + request.num_wanted + self.policy.plan.budget

    def has_room(self, request: Request) -> bool:
        """Whether ``request`` may join those in flight. All rows of the cache are as long as the
        longest, hence the product."""
        everyone, limit = [*self.rows, request], self.limits.kv_tokens
        if self._filling is not None or len(everyone) > self.limits.max_batch_size:
            return False
        return limit is None or len(everyone) * max(map(self.num_slots, everyone)) <= limit

    def open(self, request: Request, drafter: Drafter) -> None:
        """Give ``request`` a row of the cache, with what is known of its prompt; ``fill`` does the
        rest."""
        length = len(request.prompt_ids)
        with self._failing(request, drafter):
            known = self._known(request.prompt_ids, drafter)
            request.stats.num_reused = known.target.length
            self._filling = _Filling(request, known.draft)
            drafter.holder = self
            # The answer's room grows while it is written, up to the worst case.
            self.cache.ceiling = max(map(self.num_slots, [*self.rows, request]))
            self.cache.row_ceiling = self.limits.max_batch_size
            if self.limits.kv_tokens is not None:
                self.cache.fit(len(self.rows) + 1, self.cache.ceiling, self.limits.kv_tokens)
            self.cache.admit(known.target)
            soon = length + max(length, _FIRST_ROOM)
            self.cache.make_room(min(soon, self.num_slots(request)))

    def fill(self, limit: int, target: Target, drafter: Drafter) -> int:
        """Feed at most ``limit`` tokens of the prompt of ``filling``; returns how many. After the
        last of them the request emits its first token and becomes the last of ``rows``.

        Whatever is raised on the way, out of memory or an interrupt, fails this request only: no
        room keeps a part of its row.
        """
        filling, row = self._filling, len(self.rows)
        assert filling is not None, "no prompt is being fed"
        with self._failing(filling.request, drafter):
            prompt, start = filling.request.prompt_ids, self.cache.lengths[row]
            ids = prompt[start : start + limit]
            out = target.prefill(ids, self.cache, row, drafter.needs)
            if out.features is not None:
                filling.features.append(out.features[0])
            if start + len(ids) == len(prompt):
                self._start(filling, out.logits, drafter)
        return len(ids)

    def _known(self, ids: list[int], drafter: Drafter) -> Prefix:
        """The most of a prompt that other requests have fed, finished ones or those in flight."""
        if not self.limits.prefix_bytes:
            return NOTHING
        found = self.prefixes.find(ids)
        common = [num_common(_text(request), ids) - 1 for request in self.rows]
        length = max(common, default=0)
        if length <= found.target.length:
            return found
        return self._saved(common.index(length), length, drafter)

    def _remember(self, drafter: Drafter) -> None:
        """Save the rows that are about to leave; where memory is short, forget instead."""
        try:
            for row, request in enumerate(self.rows if self.limits.prefix_bytes else ()):
                if request.finish_reason not in (None, "error"):
                    known = self._saved(row, self.cache.lengths[row], drafter)
                    self.prefixes.put(known, self.limits.prefix_bytes)
        except torch.OutOfMemoryError:
            self.prefixes = PrefixStore()

    def _saved(self, row: int, length: int, drafter: Drafter) -> Prefix:
        """The first ``length`` entries of ``row``, here and at the drafter, or what there is."""
        text = _text(self.rows[row])
        return Prefix.of(text, self.cache.save(row, length), drafter.save(row, length))

    def _start(self, filling: _Filling, logits: Tensor, drafter: Drafter) -> None:
        """The prompt is fed: tell sampler and drafter, and choose from ``logits`` [1, 1, V]."""
        request, row = filling.request, len(self.rows)
        self.sampler.admit(
            request.params,
            request.prompt_ids,
            seed=request.seed,
            eos_ids=tuple(request.end_ids),
            choice_index=request.choice_index,
            processors=request.processors,
        )
        features = torch.cat(filling.features) if filling.features else None
        drafter.resume(filling.draft, request.prompt_ids, features)
        self.policy.begin(request.params.draft)
        self.rows.append(request)
        self._filling = None
        tree = TokenTree.root_only(torch.tensor(request.prompt_ids[-1:], device=self._device))
        nodes = self.sampler.view(tree, logits, slice(row, row + 1))
        (choices,), (failed,) = nodes.listed
        request.stats.num_prefills = self._take(row, choices, logits[0], failed)

    @contextmanager
    def _failing(self, request: Request, drafter: Drafter) -> Iterator[None]:
        """What is raised inside ends ``request``, which leaves without a trace."""
        size = len(self.rows)
        try:
            yield
        except BaseException as error:
            request.finish("error", _reason(error))
            self._filling = None
            self._keep(list(range(size)), drafter)
            raise

    def request(self) -> DraftRequest:
        """What the drafter may know."""
        roots = torch.tensor([row.token_ids[-1] for row in self.rows], device=self._device)
        lengths = self.cache.lengths[: len(self.rows)]
        caps = [row.depth_cap for row in self.rows]
        self._draft_limits = limits = self.policy.limits(lengths, caps)
        caps = [min(pair) for pair in zip(caps, limits.depths, strict=True)]
        is_traced = any(row.params.trace for row in self.rows)
        asked = partial(
            DraftRequest, roots, lengths, caps, limits.plan, cache=self.cache, is_traced=is_traced
        )
        if self._draws is None:
            return asked(self._noise)
        return asked(self._draws, is_sampled=True, choose=self._draws.choose)

    def sealed(self, tree: TokenTree) -> TokenTree:
        """The draft of ``request`` as the rule needs it: with its laws where it was drawn. Nothing
        is fed besides the roots while drafting is off."""
        if self._draft_limits is not None and self._draft_limits.is_off:
            tree = TokenTree.root_only(tree.tokens[:, 0])
        return tree if self._draws is None else self._draws.seal(tree)

    def emit(self, tree: TokenTree, nodes: NodeView, verdict: Verdict, out: TargetOutput) -> None:
        """Hand every row its accepted tokens and its bonus."""
        for row, (request, path) in enumerate(zip(self.rows, verdict.paths, strict=True)):
            tokens, valid = tree.listed.tokens[row], tree.listed.valid[row]
            request.stats.num_forwards += 1
            request.stats.num_drafted += sum(valid) - 1
            request.stats.count_path(len(path) - 1, max(compress(tree.listed.depth[row], valid)))
            new = [*(tokens[node] for node in path[1:]), verdict.bonuses[row]]
            logits = out.logits[row]
            if request.params.logprobs is not None:
                logits = logits[path]
            failed = nodes.listed.failed[row]
            self._take(row, new, logits, [failed[node] for node in path])

    def trace(
        self, tree: TokenTree, verdict: Verdict, times_ms: tuple[float, float], drafter: Drafter
    ) -> None:
        """Record the cycle for the rows that asked for it; ``times_ms`` of draft and verify."""
        for row, request in enumerate(self.rows):
            if request.params.trace:
                request.cycles.append(Cycle.of(tree, verdict, row, times_ms, drafter.origin))

    def leave(self, drafter: Drafter) -> list[Request]:
        """Remove the finished rows everywhere; returns them.

        Rows from the end fill the gaps, so that few caches have to move.
        """
        done = [request for request in self.rows if request.finish_reason is not None]
        half = self.filling
        if half is not None and half.finish_reason is not None:
            self._filling = None
            done.append(half)
        if done:
            self._remember(drafter)
            running = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
            size = len(running)
            behind = [i for i in running if i >= size]
            stay = [i if i in running else behind.pop() for i in range(size)]
            self._keep(stay, drafter)
        return done

    def abandon(self, error: BaseException, drafter: Drafter) -> list[Request]:
        """Fail every row because of ``error``: a cycle cut short leaves the rooms at different
        tokens. Returns the rows, which have left."""
        for request in self.rows:
            if request.finish_reason is None:
                request.finish("error", _reason(error))
        return self.leave(drafter)

    def _keep(self, stay: list[int], drafter: Drafter) -> None:
        half = [] if self._filling is None else [len(self.rows)]
        self.cache.keep([*stay, *half])
        self.sampler.keep(stay)
        drafter.keep(stay)
        drafter.holder = self if stay or half else None
        self.policy.keep(stay)
        self.rows = [self.rows[i] for i in stay]

    def _take(self, row: int, tokens: list[int], logits: Tensor, failed: list[int]) -> int:
        """Give ``tokens`` to a row, up to the first one whose choice ``failed``; they were chosen
        from raw ``logits`` [len(tokens), V], read for log-probabilities only. Returns how many
        it took."""
        request = self.rows[row]
        num_good = failed.index(1) if 1 in failed else len(tokens)
        taken = request.take(tokens[:num_good])
        if num_good < len(tokens) and request.finish_reason is None:
            request.finish("error", self.sampler.failure(row, taken))
        self.sampler.extend(row, taken)
        request.stats.num_emitted += len(taken)
        if request.params.logprobs is not None:
            request.logprobs += TokenLogprobs.of(logits, taken, request.params.logprobs)
        return len(taken)


def _text(request: Request) -> list[int]:
    """Prompt and answer so far."""
    return request.prompt_ids + request.token_ids


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
