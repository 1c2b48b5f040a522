"""Tokens per second of vLLM on this CPU beside those of this package: one run, the same prompts and
numbers of tokens, in alternation. ``make bench-vllm`` runs it in the environment of vllm_env.sh.

Every engine has a process of its own and all cores, one at a time: they answer each prompt in turn,
in rotating order, and wait asleep for the others. All are greedy, in float32, batch 1, and go to
the end token or the limit. vLLM runs with what it recommends for a CPU (Intel's OpenMP, bound
threads, no second process), this package as it is installed. vLLM compiles its forwards, and so
does this package, but for the plain decoding that all are compared with.
The JSON report has a row per engine, method and task:

    {"engine", "version", "method", "task", "num_tokens": [per prompt], "tokens_per_s": [per prompt,
     the median of its repetitions, prefill included], "texts_sha256", "drafts", "accepted"}

Rows of one task with equal ``texts_sha256`` have the same token ids in every prompt. A table is
written beside the report.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pool import HEADS, TARGET, Worker, digest, prompts, tuned, vllm_job, worker

from jakiro.bench.environment import environment
from jakiro.hub.convert.exporting import export_head

Jobs = dict[tuple[str, str], dict[str, Any]]
"""By engine and method."""

PLAIN = ("jakiro", "plain")


def jobs(room: Path, depth: int, eager: bool) -> Jobs:
    """What is measured."""
    export_head(HEADS / "jakiro_last", room / "jakiro", "eagle-vllm", TARGET)
    drafted = {
        "plain": None,
        "ngram": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
        "eagle (jakiro head)": {"method": "eagle", "model": str(room / "jakiro")},
    }
    found: Jobs = {}
    for name, settings in drafted.items():
        full = settings and {**settings, "num_speculative_tokens": depth}
        found["vllm", name] = vllm_job(full, eager)
    found[PLAIN] = {"engine": "jakiro", "target": TARGET.name, "drafter": "none"}
    # The bundled head reads lower layers as well, which vLLM's does not.
    compiled = {
        "plain": "none",
        "prompt_lookup": "prompt_lookup",
        "jakiro": str(HEADS / "jakiro_last"),
        "jakiro (bundled)": "jakiro",
    }
    for name, drafter in compiled.items():
        found["jakiro", f"{name}, compiled"] = found[PLAIN] | {"drafter": drafter, "compile": True}
    return found


def measure(
    engines: dict[tuple[str, str], Worker], asked: list[list[int]], max_tokens: int, times: int
) -> dict[tuple[str, str], list[list[dict[str, Any]]]]:
    """The answers by engine, prompt and repetition; the first prompt warms everybody up."""
    names = list(engines)
    for engine in engines.values():
        engine.ask(asked[0], max_tokens)
    found: dict[tuple[str, str], list[list[dict[str, Any]]]] = {name: [] for name in names}
    for turn, prompt in enumerate(asked):
        for name in names:
            found[name].append([])
        for repetition in range(times):
            first = (turn + repetition) % len(names)
            for name in (*names[first:], *names[:first]):
                found[name][turn].append(engines[name].ask(prompt, max_tokens))
        print(f"{turn + 1} of {len(asked)} prompts", file=sys.stderr, flush=True)
    return found


def row(name: tuple[str, str], version: str, task: str, found: list[list[dict[str, Any]]]) -> Any:
    """One row of the report."""
    texts = [once[0]["token_ids"] for once in found]
    depth = max(len(once[0]["accepted"]) for once in found)
    accepted = [
        sum(once[0]["accepted"][level] for once in found if level < len(once[0]["accepted"]))
        for level in range(depth)
    ]
    return {
        "engine": name[0],
        "version": version,
        "method": name[1],
        "task": task,
        "num_tokens": [len(text) for text in texts],
        "tokens_per_s": [
            len(text) / statistics.median(one["seconds"] for one in once)
            for text, once in zip(texts, found, strict=True)
        ],
        "texts_sha256": digest(texts),
        "drafts": sum(once[0]["drafts"] for once in found),
        "accepted": accepted,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: speed over all prompts, against plain decoding of this package."""

    def speed(one: dict[str, Any]) -> float:
        seconds = sum(n / v for n, v in zip(one["num_tokens"], one["tokens_per_s"], strict=True))
        return float(sum(one["num_tokens"]) / seconds)

    plain = {one["task"]: one for one in rows if (one["engine"], one["method"]) == PLAIN}
    lines = [
        "| task | engine | method | tokens/s | to jakiro plain | τ | same text |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        base = plain[one["task"]]
        tau = 1 + sum(one["accepted"]) / one["drafts"] if one["drafts"] else 1
        is_same = "yes" if one["texts_sha256"] == base["texts_sha256"] else "no"
        lines.append(
            f"| {one['task']} | {one['engine']} {one['version']} | {one['method']} | "
            f"{speed(one):.1f} | {speed(one) / speed(base):.2f} | {tau:.2f} | {is_same} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--out", type=Path, required=True, help="JSON report")
    options.add_argument("--task", action="append", help="shipped or a JSONL file; repeatable")
    options.add_argument("--limit", type=int, default=20, help="prompts of each task")
    options.add_argument("--max-tokens", type=int, default=128)
    options.add_argument("--repetitions", type=int, default=3)
    options.add_argument("--depth", type=int, default=4, help="tokens vLLM drafts")
    options.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    chosen = options.parse_args()
    tasks = chosen.task or ["humaneval", "gsm8k"]
    asked = prompts(tasks, chosen.limit, chosen.max_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as room, ExitStack() as stack:
        engines = {
            name: stack.enter_context(worker(job, tuned() if name[0] == "vllm" else {}))
            for name, job in jobs(Path(room), chosen.depth, chosen.eager).items()
        }
        for task, each in asked.items():
            found = measure(engines, each, chosen.max_tokens, chosen.repetitions)
            rows += [row(name, engines[name].version, task, found[name]) for name in engines]
    report = {
        "schema": 1,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "environment": asdict(environment()),
        "settings": {name: value for name, value in vars(chosen).items() if name != "out"}
        | {"task": tasks, "target": TARGET.name, "dtype": "float32"},
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    chosen.out.with_suffix(".md").write_text(table(rows), "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
