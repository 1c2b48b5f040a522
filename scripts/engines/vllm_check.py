"""Heads of this package in vLLM: the same text as without them, and the same accepted tokens as
the same chain here. ``make test-vllm`` runs it in the environment of vllm_env.sh.

For every head, on every prompt, greedy, float32: token ids of vLLM with the head = of vLLM
without = of this package; number of drafts and accepted tokens by depth = those of a chain of
this package. Then ``vllm serve`` with the Jakiro head: the same ids over HTTP, and its counters
are the sums. Writes a JSON report; the exit status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pool import HEADS, MODELS, TARGET, digest, prompts, tuned, vllm_job, worker

from jakiro.bench.environment import environment
from jakiro.hub import checkpoint
from jakiro.hub.convert.exporting import export_head

DEPTH = 4
Answers = list[dict[str, Any]]


def without_bias(source: Path, out: Path) -> Path:
    """The head in ``source`` less the bias of ``fc``: the form vLLM's own EAGLE class holds."""
    head = checkpoint.load(source)
    smaller = type(head)(replace(head.config, fc_bias=False))
    smaller.load_state_dict(
        {name: value for name, value in head.state_dict().items() if name != "fc.bias"}
    )
    checkpoint.save(smaller, out, checkpoint.read_config(source)["target"])
    return out


def heads(room: Path) -> dict[str, tuple[Path, Path]]:
    """By name: the head here, and exported for vLLM."""
    mine = {
        "jakiro": HEADS / "jakiro_last",
        "eagle2": MODELS / "pico-eagle2",
        "eagle2, no bias": without_bias(MODELS / "pico-eagle2", room / "no-bias"),
    }
    found = {}
    for index, (name, head) in enumerate(mine.items()):
        out = room / f"exported-{index}"
        export_head(head, out, "eagle-vllm", TARGET)
        found[name] = (head, out)
    return found


def answers(job: dict[str, Any], asked: list[list[int]], max_tokens: int) -> Answers:
    """What one engine makes of all prompts."""
    with worker(job, tuned()) as engine:
        return [engine.ask(ids, max_tokens) for ids in asked]


def totals(found: Answers) -> dict[str, Any]:
    """Drafts, and accepted tokens by depth, over all prompts."""
    depths = zip(*(one["accepted"] for one in found), strict=True)
    return {"drafts": sum(one["drafts"] for one in found), "accepted": [sum(d) for d in depths]}


def compare(name: str, ours: Answers, theirs: Answers, plain: Answers) -> dict[str, Any]:
    """One row of the report."""
    counts = [(one["drafts"], one["accepted"]) for one in ours]
    other = [(one["drafts"], one["accepted"]) for one in theirs]
    row = {
        "head": name,
        "texts_equal": ids(ours) == ids(theirs) == ids(plain),
        "counts_equal": counts == other,
        "jakiro": totals(ours),
        "vllm": totals(theirs),
    }
    print(json.dumps(row), flush=True)
    return row


def ids(found: Answers) -> list[list[int]]:
    return [one["token_ids"] for one in found]


@contextmanager
def server(head: Path) -> Iterator[str]:
    """The address of ``vllm serve`` with ``head``, when it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"method": "eagle", "model": str(head), "num_speculative_tokens": DEPTH}
    command = [
        str(Path(sys.executable).with_name("vllm")),
        *("serve", str(TARGET), "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--speculative-config", json.dumps(settings)),
    ]
    surroundings = os.environ | {"HF_HUB_OFFLINE": "1"} | tuned()
    # A server runs its engine in processes of their own and binds their threads itself.
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "KMP_AFFINITY"):
        del surroundings[name]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    surroundings["VLLM_CPU_OMP_THREADS_BIND"] = cores
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=surroundings, stdout=log, stderr=log)
        try:
            wait(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            log.seek(0)
            print(log.read()[-6000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(60)


def wait(address: str, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    """Until ``address`` answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"the server did not answer at {address}")


def serve(head: Path, asked: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Any]:
    """Token ids over HTTP, and the server's counters."""
    with server(head) as address:
        texts = []
        for prompt in asked:
            body = {
                "model": str(TARGET),
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "return_token_ids": True,
            }
            request = urllib.request.Request(
                f"{address}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=600) as reply:
                texts.append(json.load(reply)["choices"][0]["token_ids"])
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as reply:
            lines = reply.read().decode().splitlines()
    found = {"drafts": 0, "accepted": [0] * DEPTH}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("vllm:spec_decode_num_drafts_total"):
            found["drafts"] = int(float(value))
        elif name.startswith("vllm:spec_decode_num_accepted_tokens_per_pos_total"):
            depth = int(name.partition('position="')[2].partition('"')[0])
            found["accepted"][depth] = int(float(value))
    return texts, found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--out", type=Path, required=True, help="JSON report")
    options.add_argument("--limit", type=int, default=4, help="prompts of each task")
    options.add_argument("--max-tokens", type=int, default=64)
    chosen = options.parse_args()
    asked = prompts(["humaneval", "gsm8k"], chosen.limit, chosen.max_tokens + DEPTH + 1)
    flat = [one for each in asked.values() for one in each]
    room = Path(tempfile.mkdtemp())
    try:
        found = heads(room)
        plain = answers(vllm_job(None, eager=True), flat, chosen.max_tokens)
        rows = []
        for name, (head, exported) in found.items():
            chain = {"engine": "chain", "target": str(TARGET), "head": str(head), "depth": DEPTH}
            ours = answers(chain, flat, chosen.max_tokens)
            eagle = {"method": "eagle", "model": str(exported), "num_speculative_tokens": DEPTH}
            theirs = answers(vllm_job(eagle, eager=True), flat, chosen.max_tokens)
            rows.append(compare(name, ours, theirs, plain))
        texts, counters = serve(found["jakiro"][1], flat, chosen.max_tokens)
        served = {
            "texts_equal": texts == ids(plain),
            "counts_equal": counters == rows[0]["vllm"],
            "counters": counters,
        }
        print(json.dumps({"vllm serve": served}), flush=True)
    finally:
        shutil.rmtree(room)
    report = {
        "environment": asdict(environment()),
        "vllm": __import__("vllm").__version__,
        "depth": DEPTH,
        "max_tokens": chosen.max_tokens,
        "num_prompts": {task: len(each) for task, each in asked.items()},
        "num_tokens": sum(map(len, ids(plain))),
        "texts_sha256": digest(ids(plain)),
        "heads": rows,
        "vllm_serve": served,
    }
    chosen.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0 if all(r["texts_equal"] and r["counts_equal"] for r in [*rows, served]) else 1


if __name__ == "__main__":
    sys.exit(main())
