"""What happens in a cycle, on the clock of the device it runs on. For ``scripts/sizes.py``.

``target_ms`` and ``draft_ms`` of a cycle lie between marks around each call of a model, gaps in
which the device waited for the host included; ``overhead_ms`` is the rest of the cycle, which is
timed from one synchronisation to the next.
"""

from __future__ import annotations

import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from jakiro.drafters.nn import DraftHead
from jakiro.engine.engine import Engine
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView
from jakiro.target.features import LAST_FEATURE
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import Rule

NUM_ACCEPTED = 3
TIMES = ("cycle_ms", "target_ms", "draft_ms", "overhead_ms")


class Clock:
    """Marks in the work of a device, which nobody waits for, and the time between two."""

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"

    def mark(self) -> Any:
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, began: Any, ended: Any) -> float:
        """Between two marks, after ``wait``."""
        return float(began.elapsed_time(ended)) if self.is_gpu else 1e3 * (ended - began)

    def wait(self) -> float:
        """The host's time in seconds, all work being done."""
        if self.is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], object]) -> float:
        """Milliseconds of ``work``."""
        began = self.wait()
        work()
        return 1e3 * (self.wait() - began)


def accept_some(tree: TokenTree, nodes: NodeView) -> Verdict:
    """The path to the first node at depth ``NUM_ACCEPTED``, or above it to the last of all."""
    paths = []
    for parents, depths in zip(tree.listed.parents, tree.listed.depth, strict=True):
        wanted = min(NUM_ACCEPTED, max(depths))
        path = [depths.index(wanted)]
        while path[0]:
            path.insert(0, parents[path[0]])
        paths.append(path)
    choices = zip(nodes.listed.choice, paths, strict=True)
    return Verdict(paths, [choice[path[-1]] for choice, path in choices])


ACCEPTS_SOME = Rule("accepts some", "lossy", accept_some)
"""A random head is never right. Of its drafts so many tokens are kept unseen, and what follows a
hit is paid for as with a trained one."""


Spans = dict[str, list[tuple[Any, Any]]]


@contextmanager
def watched(engine: Engine, clock: Clock) -> Iterator[Spans]:
    """Within, every call of the target and of the drafter's modules is marked."""
    drafter: Any = engine.drafter
    places = [("target", engine.target, "forward")]
    if isinstance(getattr(drafter, "head", None), DraftHead):
        places += [("draft", drafter, "_forward"), ("draft head", drafter.vocabulary, "logits")]
    spans: Spans = {name: [] for name, *_ in places}

    def marked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = clock.mark()
            result = work(*args, **kwargs)
            spans[name].append((began, clock.mark()))
            return result

        return run

    with ExitStack() as stack:
        for name, owner, attribute in places:
            work = marked(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, work))
        yield spans


def host_syncs(work: Callable[[], object], clock: Clock) -> dict[str, int] | None:
    """How often ``work`` made the host wait for the device, by file and line; None on a CPU."""
    if not clock.is_gpu:
        work()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = (each for each in caught if "synchronizing" in str(each.message))
    return dict(Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waits))


class Bench:
    """An engine with ``batch`` random texts of ``context`` tokens; ``rounds``: how often a thing is
    done before it is timed, and how often then."""

    def __init__(
        self, engine: Engine, place: tuple[int, int], temperature: float, rounds: tuple[int, int]
    ) -> None:
        self.engine, (batch, context) = engine, place
        self._clock = Clock(engine.target.device)
        self._num_warm, self._num_timed = rounds
        words, size = random.Random(0), engine.target.vocab_size
        self._requests = [
            engine.submit(
                words.choices(range(size), k=context),
                SamplingParams(
                    max_new_tokens=4096, ignore_eos=True, temperature=temperature, seed=row
                ),
            )
            for row in range(batch)
        ]

    def close(self) -> None:
        """Let all rows leave."""
        for request in self._requests:
            request.cancel()
        self.engine.step()

    def cycle(self) -> dict[str, Any]:
        """Medians of whole cycles and of the models' share in them; how often the host waits."""
        cells: list[dict[str, float]] = []
        for _ in range(1 + self._num_warm):  # the first one feeds the prompts
            self.engine.step()
        with watched(self.engine, self._clock) as spans:
            for _ in range(self._num_timed):
                for each in spans.values():
                    each.clear()
                whole = self._clock.timed(self.engine.step)
                target, *draft = (
                    sum(self._clock.ms(*pair) for pair in pairs) for pairs in spans.values()
                )
                rest = whole - target - sum(draft)
                cells.append(dict(zip(TIMES, (whole, target, sum(draft), rest), strict=True)))
        found: dict[str, Any] = {name: median(cell[name] for cell in cells) for name in TIMES}
        found["num_draft_forwards"] = len(spans.get("draft", ()))
        found["host_syncs"] = host_syncs(self.engine.step, self._clock)
        return found

    @torch.inference_mode()
    def tree_forwards(self, sizes: Sequence[int]) -> dict[str, float]:
        """Milliseconds of verifying trees, by their number of nodes; nothing is committed."""
        cache, target = self.engine._batch.cache, self.engine.target
        found = {}
        for size in sizes:
            parents = (torch.arange(size, device=target.device) - 1) // 2
            tokens = torch.arange(size, device=target.device).expand(cache.num_rows, size)
            valid = torch.ones_like(tokens, dtype=torch.bool)
            tree = TokenTree(tokens, parents.expand_as(tokens), valid)
            verify = partial(target.verify, tree, cache, LAST_FEATURE)
            times = [self._clock.timed(verify) for _ in range(self._num_warm + self._num_timed)]
            found[str(size)] = median(times[self._num_warm :])
        return found
