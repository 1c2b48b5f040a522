"""Two replicas on loopback under load, one of them killed: it loses its own streams and no others,
and is replaced. ``make test-ray`` runs it in an environment of its own.

Eight clients stream at once; a replica takes four, so each has four. When all have text, the
process of one replica is killed. Four streams must go on to the end with the text of the engine
alone, four must break off within it; then there are two replicas again, one of them new, and all
eight questions are answered in full. Writes a JSON report; the exit status is 1 where anything
differs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine is no failure

import psutil
import ray
from ray import serve

import jakiro
from jakiro.bench.environment import environment
from jakiro.integrations.ray import Options, app

PER_REPLICA, NUM_TOKENS = 4, 400
PROMPTS = [f"Write the numbers from {first} on." for first in range(1, 2 * PER_REPLICA + 1)]


def expected() -> list[str]:
    """The text of every prompt, by the engine alone."""
    params = jakiro.SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    return [done.text for done in jakiro.load("pico").generate(PROMPTS, params)]


def ask(port: int, prompt: str, started: Callable[[], object]) -> tuple[str, bool]:
    """What is streamed, and whether it came to its end; ``started`` is called at the first text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {
        "model": "pico",
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    text, is_whole = "", False
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"status {reply.status}: {reply.read()!r}")
        for line in reply:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                is_whole = True
            elif data.startswith("{"):
                event = json.loads(data)
                if "choices" not in event:
                    break
                text += "".join(choice["text"] for choice in event["choices"])
                started()
                started = _nothing
    except (http.client.HTTPException, ConnectionError):
        pass
    finally:
        connection.close()
    return text, is_whole


def _nothing() -> None:
    """What happens after the first text."""


def replicas() -> set[int]:
    """The processes of the replicas; Ray gives them such titles."""
    below = psutil.Process().children(recursive=True)
    return {each.pid for each in below if "".join(each.cmdline()).startswith("ray::ServeReplica:")}


def under_load(port: int) -> tuple[list[tuple[str, bool]], int, float]:
    """The streams of all clients, the process that was killed when all had text, and when."""
    gate = Barrier(len(PROMPTS) + 1)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        streams = [pool.submit(ask, port, prompt, gate.wait) for prompt in PROMPTS]
        gate.wait(600)
        victim = min(replicas())
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        return [stream.result() for stream in streams], victim, killed_at


def replaced(victim: int, since: float) -> float:
    """Seconds until there are two replicas again, without the killed one."""
    while time.monotonic() < since + 600:
        states = serve.status().applications["default"].deployments["Replica"].replica_states
        living = replicas()
        if states == {"RUNNING": 2} and len(living) == 2 and victim not in living:
            return time.monotonic() - since
        time.sleep(0.5)
    raise SystemExit("the killed replica was not replaced")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(texts: list[str]) -> dict[str, Any]:
    """The report."""
    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = Options(
            max_batch_size=PER_REPLICA, max_waiting=0, min_replicas=2, max_replicas=2, cpus=0.5
        )
        began = time.monotonic()
        serve.run(app(options))
        ready_s = time.monotonic() - began
        streams, victim, killed_at = under_load(port)
        replaced_s = replaced(victim, killed_at)
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            after = list(pool.map(lambda prompt: ask(port, prompt, _nothing), PROMPTS))
    finally:
        serve.shutdown()
        ray.shutdown()
    both = list(zip(streams, texts, strict=True))
    ended = [(text, right) for (text, is_whole), right in both if is_whole]
    broken = [(text, right) for (text, is_whole), right in both if not is_whole]
    return {
        "ready_s": ready_s,
        "streams": len(streams),
        "finished": len(ended),
        "broken": len(broken),
        "finished_equal": all(text == right for text, right in ended),
        "broken_are_beginnings": all(
            text and text != right and right.startswith(text) for text, right in broken
        ),
        "replaced_s": replaced_s,
        "after_equal": after == [(right, True) for right in texts],
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--out", type=Path, required=True, help="JSON report")
    chosen = options.parse_args()
    found = run(expected())
    print(json.dumps(found, indent=2))
    report = {"environment": asdict(environment()), "ray": ray.__version__, **found}
    chosen.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    is_good = (
        found["finished"] == found["broken"] == PER_REPLICA
        and found["finished_equal"]
        and found["broken_are_beginnings"]
        and found["after_equal"]
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
