"""Where does a decoding cycle spend its time?

Three questions, on the bundled pair and the shipped prompts:

    python scripts/profile_cycle.py phases     # what a cycle costs outside its two models
    python scripts/profile_cycle.py context    # its cost against the length of the text
    python scripts/profile_cycle.py batch      # the speedup over the batch size

``phases`` prints how the time of a cycle is divided (self time: what a phase calls is not in it),
and three ratios. *Outside*: the share of a cycle spent in no forward. *Draft forward*, *tree
forward*: what a forward costs in the engine, its inputs prepared, over the same module called again
with the recorded inputs on a cache made beforehand, in the order of the cycle; for the tree also
over the model as the user loaded it. Runs and repetitions alternate, request by request. With one
thread times are CPU times, so that a shared machine disturbs little.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import jakiro
from jakiro.bench.workloads import TaskPrompt, load_tasks, plain_text
from jakiro.drafters import feature
from jakiro.engine.engine import Engine
from jakiro.engine.step import step
from jakiro.sampling.params import SamplingParams

clock = time.process_time
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
HEAD, LM_HEAD, TARGET = "MODULE: draft head", "MODULE: draft LM head", "MODULE: target"
PROMPT = "prompt of the draft head"
"""Done before the first draft, and no part of a cycle: the target's prompt is none either."""


@dataclass
class Phases:
    """Self times of nested phases in seconds, and how often each was entered."""

    times: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _inner: list[float] = field(default_factory=list)

    def timed(self, name: str, work: Any, *, is_whole: bool = False) -> Callable[..., Any]:
        """``work``, its self time added to ``name`` when it is called within the whole."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._inner and not is_whole:
                return work(*args, **kwargs)
            self._inner.append(0.0)
            began = clock()
            result = work(*args, **kwargs)
            took = clock() - began
            self.times[name] += took - self._inner.pop()
            self.counts[name] += 1
            if self._inner:
                self._inner[-1] += took
            return result

        return run


def places(engine: Engine) -> list[tuple[Any, str, str]]:
    """Object, attribute and phase of everything that is timed."""
    drafter: Any = engine.drafter
    target: Any = engine.target
    batch: Any = engine._batch
    return [
        (drafter, "draft", "draft: other"),
        (drafter, "_remember_many", PROMPT),
        (drafter, "_catch_up", "draft: inputs"),
        (drafter, "_feed", "draft: inputs"),
        (drafter, "_forward", "draft: inputs"),
        (drafter.head, "forward", HEAD),
        (drafter.vocabulary, "logits", LM_HEAD),
        (batch.sampler, "scores", "draft: scores and noise"),
        (target, "verify", "tree forward: inputs"),
        (target._runner, "forward", TARGET),
        (batch.sampler, "view", "choices and noise"),
        (batch.cache, "commit", "commit"),
        (drafter, "accept", "drafter's bookkeeping"),
        (batch, "emit", "emit"),
    ]


@contextmanager
def watched(engine: Engine, phases: Phases) -> Iterator[None]:
    """Within, the cycles of ``engine`` are timed."""

    def cycle(batch: Any, target: Any, drafter: Any, rule: Any, total: Any) -> None:
        step(batch, target, drafter, phases.timed("rule", rule), total)

    with ExitStack() as stack:
        for owner, name, phase in places(engine):
            timed = phases.timed(phase, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        growth = phases.timed("draft: growth", feature.grow)
        stack.enter_context(patch.object(feature, "grow", growth))
        whole = phases.timed("everything else", cycle, is_whole=True)
        stack.enter_context(patch("jakiro.engine.engine.step", whole))
        yield


@contextmanager
def recorded(engine: Engine, calls: list[Call]) -> Iterator[None]:
    """Within, the inputs of all forwards of a cycle are kept, in their order."""
    inside = False

    def recording(phase: str, work: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if inside:
                calls.append((phase, kept(args), kept(kwargs)))
            return work(*args, **kwargs)

        return run

    def cycle(*args: Any) -> None:
        nonlocal inside
        inside = True
        step(*args)
        inside = False

    with ExitStack() as stack:
        for owner, name, phase in places(engine):
            if phase in (HEAD, LM_HEAD, TARGET):
                stack.enter_context(
                    patch.object(owner, name, recording(phase, getattr(owner, name)))
                )
        stack.enter_context(patch("jakiro.engine.engine.step", cycle))
        yield


def kept(value: Any) -> Any:
    """``value`` with its tensors copied: the engine may write into its own again."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(kept(each) for each in value)
    if isinstance(value, dict):
        return {name: kept(each) for name, each in value.items()}
    return value


class Fixed:
    """A cache of one layer that holds what it holds: keys and values [1, heads, S, d]."""

    def __init__(self, engine: Engine) -> None:
        config: Any = engine.drafter.head.config  # type: ignore[attr-defined]
        length = engine.target.context_length + 64
        self._both = torch.randn(2, 1, config.num_kv_heads, length, config.head_dim)
        self.span = 0

    def update(self, keys: Any, values: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = self._both[:, :, :, : self.span]
        return own[0], own[1]


@torch.inference_mode()
def replay(engine: Engine, calls: list[Call], run: Any) -> dict[str, float]:
    """Times of the recorded forwards alone, the target's through ``run``."""
    drafter: Any = engine.drafter
    fixed, times = Fixed(engine), defaultdict(float)
    cache = engine.target.new_cache()
    engine.target.prefill([1] * 8, cache, cache.admit())
    cache.reserve(1, engine.target.context_length + 64)
    for phase, args, kwargs in calls:
        if phase == HEAD:
            fixed.span = kwargs["mask"].shape[-1]
            inputs = kwargs | {"cache": fixed}
            began = clock()
            drafter.head(**inputs)
        elif phase == LM_HEAD:
            began = clock()
            drafter.vocabulary.logits(*args)
        else:
            cache.lengths = [int(kwargs["position_ids"][0, 0])]
            cache.aim(slice(0, 1), kwargs["input_ids"].shape[1])
            began = clock()
            run(**kwargs | {"past_key_values": cache})
        times[phase] += clock() - began
    return times


def run_one(engine: Engine, prompt: Any, params: SamplingParams) -> None:
    (done,) = engine.generate([prompt], params)
    assert done.error is None, done.error


def phases(args: argparse.Namespace) -> None:
    """The division of the cycle, and the three ratios."""
    for name in args.drafter:
        engine = jakiro.load("pico", name, **({"tree": args.tree} if args.tree else {}))
        for temperature in args.temperature:
            total, ratios = Phases(), defaultdict(list)
            for seed, prompt in enumerate(prompts(args)):
                params = SamplingParams(
                    temperature=temperature, max_new_tokens=args.max_new_tokens, seed=seed
                )
                calls: list[Call] = []
                with recorded(engine, calls):
                    run_one(engine, prompt, params)
                for _ in range(args.rounds):
                    own = Phases()
                    with watched(engine, own):
                        run_one(engine, prompt, params)
                    own.times.pop(PROMPT)
                    bare = replay(engine, calls, engine.target._runner)
                    loaded = replay(engine, calls, engine.target.model)[TARGET]
                    add_ratios(ratios, own.times, bare, loaded)
                    for phase, took in own.times.items():
                        total.times[phase] += took
                        total.counts[phase] += own.counts[phase]
            report(f"{name}, {engine.plan}, T = {temperature:g}", total, ratios)


def add_ratios(
    ratios: dict[str, list[float]], own: dict[str, float], bare: dict[str, float], loaded: float
) -> None:
    modules = own[HEAD] + own[LM_HEAD] + own[TARGET]
    draft = own["draft: inputs"] + own[HEAD] + own[LM_HEAD]
    tree = own["tree forward: inputs"] + own[TARGET]
    whole = sum(own.values())
    ratios["outside"].append((whole - modules) / whole)
    ratios["draft forward / bare"].append(draft / (bare[HEAD] + bare[LM_HEAD]))
    ratios["tree forward / bare"].append(tree / bare[TARGET])
    ratios["tree forward / model as loaded"].append(tree / loaded)
    ratios["cycle / bare forwards"].append(whole / sum(bare.values()))


def report(title: str, total: Phases, ratios: dict[str, list[float]]) -> None:
    cycles = total.counts["everything else"]
    whole = sum(total.times.values())
    print(f"\n{title}: {1e3 * whole / cycles:.3f} ms a cycle, {cycles} cycles")
    for phase, took in sorted(total.times.items(), key=lambda entry: -entry[1]):
        calls = total.counts[phase] / cycles
        print(f"  {phase:28} {1e6 * took / cycles:8.0f} us {took / whole:6.1%}  {calls:5.1f} calls")
    print("  " + ", ".join(f"{name} {median(found):.3f}" for name, found in ratios.items()))


def prompts(args: argparse.Namespace) -> list[TaskPrompt]:
    return [prompt for task in load_tasks(args.task, args.limit) for prompt in task.prompts]


def cycle_ms(engine: Engine, prompt: Any, num_cycles: int) -> float:
    """Median time of a cycle behind ``prompt``."""
    request = engine.submit(prompt, SamplingParams(max_new_tokens=256, ignore_eos=True))
    engine.step()
    times = []
    for _ in range(num_cycles):
        began = clock()
        engine.step()
        times.append(1e3 * (clock() - began))
    request.cancel()
    engine.step()
    return median(times)


def context(args: argparse.Namespace) -> None:
    """The cost of a cycle behind texts of growing length, plain decoding beside it."""
    engines = {name: jakiro.load("pico", name) for name in ("none", *args.drafter)}
    longest = engines["none"].target.context_length - 64
    text = "\n\n".join(plain_text(prompt) for prompt in prompts(args))
    ids = engines["none"].encode(text)
    while len(ids) < longest:
        ids = ids + ids
    print(f"median ms of a cycle behind a text of so many tokens\n{'tokens':>8}", *engines)
    for length in (128, 256, 384, 512, 640, 768, 896, longest):
        found = [cycle_ms(engine, ids[:length], args.rounds * 8) for engine in engines.values()]
        print(f"{length:8}", *(f"{ms:8.2f}" for ms in found))


def batch(args: argparse.Namespace) -> None:
    """Tokens per second of whole batches, over plain decoding of the same batch."""
    sizes = (1, 2, 4, 8, 16)
    names = ("none", *args.drafter)
    engines = {name: jakiro.load("pico", name, max_batch_size=max(sizes)) for name in names}
    found = (prompts(args) * max(sizes))[: max(sizes)]
    print(f"speedup over plain decoding of the same batch\n{'batch':>8}", *names[1:])
    for temperature in args.temperature:
        for size in sizes:
            params = [
                SamplingParams(
                    temperature=temperature,
                    max_new_tokens=args.max_new_tokens,
                    seed=seed,
                    ignore_eos=True,
                )
                for seed in range(size)
            ]
            times: dict[str, list[float]] = defaultdict(list)
            for _ in range(args.rounds):
                for name, engine in engines.items():
                    began = clock()
                    engine.generate(found[:size], params)
                    times[name].append(clock() - began)
            plain = median(times["none"])
            gains = (f"{plain / median(times[name]):6.2f}" for name in args.drafter)
            print(f"{size:8}", *gains, f" T = {temperature:g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    questions = {"phases": phases, "context": context, "batch": batch}
    parser.add_argument("question", choices=questions)
    parser.add_argument("--drafter", nargs="+", default=["jakiro", "eagle2"])
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--task", nargs="+", default=["humaneval", "gsm8k"])
    parser.add_argument("--limit", type=int, default=3, help="prompts of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--tree", default=None)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    global clock
    clock = time.process_time if args.threads == 1 else time.perf_counter
    torch.set_num_threads(args.threads)
    questions[args.question](args)


if __name__ == "__main__":
    main()
