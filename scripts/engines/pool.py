"""What the scripts of this directory share: engines in processes of their own, and prompts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jakiro
from jakiro.bench.workloads import load_tasks
from jakiro.cli.requests import encode_tasks

MODELS = Path(jakiro.__file__).parent / "models"
TARGET = MODELS / "pico"
HEADS = Path(__file__).resolve().parents[2] / "heads"


def tuned() -> dict[str, str]:
    """The surroundings that vLLM recommends for the CPU, for one process on all its cores."""
    cores = sorted(os.sched_getaffinity(0))
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    places = ",".join(map(str, cores))
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(len(cores)),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{places}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    } | ({"LD_PRELOAD": str(library)} if library.exists() else {})


class Worker:
    """An engine of ``worker.py``, started by ``worker``; ``ask`` it one request after the other."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process, self._log = process, log
        self.version: str = self._read()["version"]

    def ask(self, prompt_ids: list[int], max_tokens: int) -> dict[str, Any]:
        """The answer line of ``worker.py``."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"prompt_ids": prompt_ids, "max_tokens": max_tokens}) + "\n"
        )
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"an engine has ended:\n{self._log.read()[-6000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(job: dict[str, Any], extra: dict[str, str]) -> Iterator[Worker]:
    """The engine of ``job``, in surroundings with ``extra``. It ends with the block."""
    surroundings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | extra
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | surroundings,
        )
        try:
            yield Worker(process, log)
        finally:
            process.kill()
            process.wait()


def vllm_job(speculative: dict[str, Any] | None, eager: bool = False) -> dict[str, Any]:
    """A vLLM worker on the bundled target."""
    return {"engine": "vllm", "target": str(TARGET), "speculative": speculative, "eager": eager}


def prompts(names: Sequence[str], limit: int, max_tokens: int) -> dict[str, list[list[int]]]:
    """The shipped prompts as ``jakiro bench`` gives them to an engine, by task."""
    plain = jakiro.load("pico", "none")
    found: dict[str, list[list[int]]] = {}
    for name, ids in encode_tasks(plain, load_tasks(names, limit), max_tokens, None)[0]:
        found.setdefault(name, []).append(ids)
    return found


def digest(texts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the token ids of ``texts``, to compare engines by."""
    return hashlib.sha256(json.dumps([list(text) for text in texts]).encode()).hexdigest()
