"""Load on a server: many streaming clients, a third of which leave in the middle of an answer.

    python -m scripts.load --seconds 120 --clients 64 --out load.json [-- --target DIR --threads 2]

Starts ``jakiro serve`` twice in turn, as told behind ``--`` and with ``--drafter none``, and puts
the same load on both. Every answer that a client waits for must be whole (a reason to end, a usage
that fits, ``[DONE]``); afterwards nothing may run, wait or hold cache, and there must be as many
file descriptors and threads as before, with the memory steady; SIGTERM in the middle of streams
must end each of them as it should, and the process with code 0. The report says so beside latencies
and throughput; clients and server share the machine. Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from jakiro.bench.environment import environment
from jakiro.bench.workloads import load_tasks, plain_text
from jakiro.hub.files import replace_files
from scripts.server import Server

LEAVES = 1 / 3
WARM_S = 5
NUM_SAMPLES = 40
"""Of the memory under load."""
MAX_GROWTH = 0.05
"""Of the memory between the second and the last quarter of the load."""


@dataclass
class Seen:
    """What the clients of one server saw."""

    finished: int = 0
    left: int = 0
    refused: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    """Per token after the first part of an answer, one value an answer."""
    tau: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """By prompt and seed."""


async def answer(
    client: httpx2.AsyncClient, body: dict[str, Any], seen: Seen, leaves_after: int | None
) -> None:
    """One request; ``leaves_after`` so many parts its client leaves."""
    began = first = last = time.monotonic()
    text, parts, done, usage, counts = "", 0, None, None, []
    async with client.stream("POST", "/v1/completions", json=body) as found:
        if found.status_code == 429:
            seen.refused += 1
            await asyncio.sleep(float(found.headers["retry-after"]))
            return
        if found.status_code != 200:
            seen.problems.append(f"status {found.status_code}")
            return
        async for line in found.aiter_lines():
            now = time.monotonic()
            if line == "data: [DONE]":
                break
            if not line:
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                seen.problems.append(event["error"]["code"])
                return
            usage = event["usage"]
            counts.append(usage["completion_tokens"])
            for choice in event["choices"]:
                (seen.gaps_s if parts else seen.first_s).append(now - (last if parts else began))
                first = first if parts else now
                text, parts, last = text + choice["text"], parts + 1, now
                done = choice if choice["finish_reason"] else done
            if parts == leaves_after:
                seen.left += 1
                return
        else:
            seen.problems.append("a stream without an end")
            return
    if done is None or usage is None:
        seen.problems.append("an answer that is not whole")
        return
    seen.finished += 1
    seen.tokens += usage["completion_tokens"]
    seen.whole_s.append(time.monotonic() - began)
    if counts[-1] > counts[0]:
        seen.token_s.append((last - first) / (counts[-1] - counts[0]))
    if done["jakiro"]["num_forwards"]:  # an answer of one token has none
        seen.tau.append(done["jakiro"]["tau"])
    seen.texts[f"{body['prompt']}\n{body['seed']}"] = text


async def load(url: str, model: str, prompts: list[str], options: argparse.Namespace) -> Seen:
    """All clients for the given time; then those still reading finish."""
    seen, until = Seen(), time.monotonic() + options.seconds

    async def visit(number: int) -> None:
        chance = random.Random(number)
        async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
            while time.monotonic() < until:
                body = request(model, chance.choice(prompts), chance.randrange(4), options.tokens)
                leaves = chance.randrange(1, 8) if chance.random() < LEAVES else None
                await answer(client, body, seen, leaves)

    await asyncio.gather(*(visit(number) for number in range(options.clients)))
    return seen


async def watched(
    server: Server, loading: Awaitable[Seen], options: argparse.Namespace
) -> tuple[Seen, list[float]]:
    """The load, and the memory (MiB) in each quarter of its time, medians."""
    samples: list[float] = []

    async def sample() -> None:
        for _ in range(NUM_SAMPLES):
            await asyncio.sleep(options.seconds / NUM_SAMPLES)
            samples.append(server.memory_mib())

    seen, _ = await asyncio.gather(loading, sample())
    quarter = NUM_SAMPLES // 4
    parts = (samples[place : place + quarter] for place in range(0, NUM_SAMPLES, quarter))
    return seen, [round(statistics.median(part), 1) for part in parts]


def request(model: str, prompt: str, seed: int, num_tokens: int) -> dict[str, Any]:
    """Greedy for even seeds, sampled for odd ones."""
    return {
        "model": model,
        "prompt": prompt,
        "seed": seed,
        "max_tokens": num_tokens,
        "temperature": float(seed % 2),
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


async def end(server: Server, model: str, prompts: list[str]) -> dict[str, Any]:
    """SIGTERM while eight streams run: how they and the process end."""
    seen = Seen()
    async with httpx2.AsyncClient(base_url=server.url, timeout=600) as client:
        bodies = [request(model, prompts[i % len(prompts)], i, 400) for i in range(8)]
        tasks = [asyncio.ensure_future(answer(client, body, seen, None)) for body in bodies]
        while not seen.first_s:
            await asyncio.sleep(0.01)
        server.terminate()
        await asyncio.gather(*tasks)
    told = [problem for problem in seen.problems if problem == "shutting_down"]
    return {
        "streams": len(bodies),
        "finished": seen.finished,
        "told_of_the_end": len(told),
        "lost": len(bodies) - seen.finished - len(told),
        "exit_code": server.exit_code(),
    }


def measure(
    extra: list[str], prompts: list[str], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """One server from its start to its end: what is reported, and the texts."""
    with Server([*options.serve, *extra]) as server:
        return put_under_load(server, prompts, options)


def put_under_load(
    server: Server, prompts: list[str], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """Warm up, load, rest, end."""
    model = server.wait()
    warm = argparse.Namespace(**vars(options) | {"seconds": max(WARM_S, options.seconds / 10)})
    asyncio.run(load(server.url, model, prompts, warm))
    server.rest()
    before, began = server.held(), time.monotonic()
    seen, memory = asyncio.run(watched(server, load(server.url, model, prompts, options), options))
    wall_s = time.monotonic() - began
    left = server.rest()
    record = {
        **{k: v for k, v in asdict(seen).items() if isinstance(v, int)},
        "problems": seen.problems,
        "wall_s": wall_s,
        "tokens_per_s": seen.tokens / wall_s,
        "tau": statistics.fmean(seen.tau) if seen.tau else 0.0,
        "first_ms": quantiles(seen.first_s),
        "per_token_ms": quantiles(seen.token_s),
        "between_parts_ms": quantiles(seen.gaps_s),
        "whole_ms": quantiles(seen.whole_s),
        "left_in_flight": left,
        "held": {"before": before, "after": server.held()},
        "memory_mib_by_quarter": memory,
        "sigterm": asyncio.run(end(server, model, prompts)),
    }
    return record, seen.texts


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"p{part}": round(1e3 * ordered[min(len(ordered) - 1, part * len(ordered) // 100)], 2)
        for part in (50, 90, 99)
    }


def is_clean(record: dict[str, Any]) -> bool:
    """Nothing was lost and nothing is left."""
    ending, memory = record["sigterm"], record["memory_mib_by_quarter"]
    before, after = record["held"]["before"], record["held"]["after"]
    return not (
        record["problems"]
        or any(record["left_in_flight"].values())
        or any(after[name] > before[name] for name in ("descriptors", "threads"))
        or memory[-1] > memory[1] * (1 + MAX_GROWTH)
        or ending["lost"]
        or ending["exit_code"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("serve", nargs="*", help="options of jakiro serve, behind --")
    options = parser.parse_args()
    prompts = [plain_text(p) for task in load_tasks(["demo", "gsm8k"]) for p in task.prompts][:24]
    drafted, texts = measure([], prompts, options)
    plain, plain_texts = measure(["--drafter", "none"], prompts, options)
    both = texts.keys() & plain_texts.keys()
    report = {
        "environment": asdict(environment()),
        "command": ["python", "-m", "scripts.load", *sys.argv[1:]],
        "drafted": drafted,
        "plain": plain,
        "speedup": drafted["tokens_per_s"] / max(plain["tokens_per_s"], 1e-9),
        "texts_compared": len(both),
        "texts_different": sum(texts[key] != plain_texts[key] for key in both),
        "is_clean": is_clean(drafted) and is_clean(plain),
    }
    text = json.dumps(report, indent=2) + "\n"
    replace_files({options.out: lambda path: path.write_text(text)})
    print(text)
    raise SystemExit(0 if report["is_clean"] else 1)


if __name__ == "__main__":
    main()
