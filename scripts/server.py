"""``jakiro serve`` in a process of its own, and what it holds."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx2
import psutil

START_S, END_S = 600, 120
IDLE_S = 11
"""Threads that wait for work longer than ten seconds end when the next work comes."""
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


class Server:
    """``jakiro serve`` in a process of its own, which does not outlive the ``with``."""

    def __init__(self, options: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = door.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = "from jakiro.cli.main import run; run()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", str(port), *options],
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, headers: dict[str, str] | None = None) -> str:
        """Until it answers, with its key if it has one; the name of its model."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                models: Any = httpx2.get(f"{self.url}/v1/models", headers=headers).json()
                return str(models["data"][0]["id"])
            except httpx2.TransportError:
                time.sleep(0.2)
        raise SystemExit("the server did not start")

    def gauges(self) -> dict[str, float]:
        """What is in flight."""
        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(r"^vllm:(\w+)\{.*\} (\S+)$", text, flags=re.MULTILINE)
        return {name: float(value) for name, value in found if name in GAUGES}

    def rest(self) -> dict[str, float]:
        """The gauges once nothing is in flight, or what they are after a minute."""
        until = time.monotonic() + END_S
        while any((gauges := self.gauges()).values()) and time.monotonic() < until:
            time.sleep(0.2)
        return gauges

    def memory_mib(self) -> float:
        """Of the process, what it shares with no other."""
        return float(psutil.Process(self._process.pid).memory_full_info().uss / 2**20)

    def held(self) -> dict[str, float]:
        """Memory (MiB), file descriptors and threads, once idle threads have gone."""
        process = psutil.Process(self._process.pid)
        time.sleep(IDLE_S)
        httpx2.post(f"{self.url}/tokenize", json={"prompt": "x"}, timeout=60).raise_for_status()
        threads, before = process.num_threads(), None
        while threads != before:
            time.sleep(2)
            threads, before = process.num_threads(), threads
        counts = {"descriptors": process.num_fds(), "threads": threads}
        return {"memory_mib": self.memory_mib(), **counts}

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
