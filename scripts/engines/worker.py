"""One engine in a process of its own, asked over pipes.

    python worker.py '{"engine": "vllm", "target": DIR, "speculative": {...} or null}'
    python worker.py '{"engine": "jakiro", "target": DIR, "drafter": NAME or DIR, "tree": PLAN,
                      "compile": true or false}'
    python worker.py '{"engine": "chain", "target": DIR, "head": DIR, "depth": D}'

It writes a line about itself, then answers each line {"prompt_ids", "max_tokens"} by one line
{"token_ids", "seconds", "drafts", "accepted"}: wall time, and drafts and accepted tokens by depth
of this request. All are greedy, in float32, one request at a time. Libraries may print as they
like: their standard output goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

Ids = list[int]
Counts = tuple[int, list[int]]
"""Drafts that were verified, and how many of them were accepted to each depth or further."""


class Served(Protocol):
    """An engine that is ready."""

    version: str

    def answer(self, prompt_ids: Ids, max_tokens: int) -> tuple[Ids, Counts]: ...


class Vllm:
    """vLLM with its defaults for the CPU, but float32 and no cache of prefixes."""

    def __init__(self, job: dict[str, Any]) -> None:
        import vllm

        self._sampling = vllm.SamplingParams
        self.version = vllm.__version__
        self._llm = vllm.LLM(
            job["target"],
            dtype="float32",
            max_num_seqs=1,
            enable_prefix_caching=False,
            enforce_eager=job.get("eager", False),
            disable_log_stats=False,
            speculative_config=job["speculative"],
        )

    def answer(self, prompt_ids: Ids, max_tokens: int) -> tuple[Ids, Counts]:
        params = self._sampling(temperature=0.0, max_tokens=max_tokens)
        prompt = {"prompt_token_ids": prompt_ids}
        before, began = self._counts(), time.perf_counter()
        (done,) = self._llm.generate([prompt], params, use_tqdm=False)
        self.seconds = time.perf_counter() - began
        after = self._counts()
        drafts = after[0] - before[0]
        accepted = [new - old for new, old in zip(after[1], before[1], strict=True)]
        return list(done.outputs[0].token_ids), (drafts, accepted)

    def _counts(self) -> Counts:
        found = {metric.name: metric for metric in self._llm.get_metrics()}
        if "vllm:spec_decode_num_drafts" not in found:
            return 0, []
        drafts = found["vllm:spec_decode_num_drafts"]
        accepted = found["vllm:spec_decode_num_accepted_tokens_per_pos"]
        return drafts.value, list(accepted.values)


class Jakiro:
    """This package, as ``jakiro.load`` makes it."""

    def __init__(self, job: dict[str, Any]) -> None:
        import jakiro

        self.version = jakiro.__version__
        self._params = jakiro.SamplingParams
        self._engine = jakiro.load(
            job["target"],
            job["drafter"],
            tree=job.get("tree"),
            dtype="float32",
            compile=job.get("compile", False),
        )

    def answer(self, prompt_ids: Ids, max_tokens: int) -> tuple[Ids, Counts]:
        began = time.perf_counter()
        (done,) = self._engine.generate([prompt_ids], self._params(max_new_tokens=max_tokens))
        self.seconds = time.perf_counter() - began
        return done.token_ids, (done.stats.num_forwards, done.stats.accepted_by_depth)


class Chain:
    """This package as vLLM drafts: a chain of fixed depth, no contrast, and no draft cut short at
    the limit, where vLLM cuts what was accepted instead."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        import jakiro
        from jakiro.drafters.feature import FeatureDrafter
        from jakiro.hub import checkpoint
        from jakiro.hub.models import load_model, load_tokenizer
        from jakiro.target.target import Target

        self.version = jakiro.__version__
        self._params = jakiro.SamplingParams
        self._depth = job["depth"]
        model = load_model(job["target"], torch.float32, torch.device("cpu"))
        head = checkpoint.load(Path(job["head"]))
        drafter = FeatureDrafter(head, Target(model), contrast_levels=0)
        self._engine = jakiro.load(
            model,
            drafter,
            tokenizer=load_tokenizer(job["target"]),
            tree=f"chain:{self._depth}",
            max_batch_size=1,
        )

    def answer(self, prompt_ids: Ids, max_tokens: int) -> tuple[Ids, Counts]:
        began = time.perf_counter()
        # With that much room left no draft before the limit is cut.
        params = self._params(max_new_tokens=max_tokens + self._depth + 1)
        request = self._engine.submit(prompt_ids, params)
        while request.finish_reason is None and len(request.token_ids) < max_tokens:
            self._engine.step()
        self.seconds = time.perf_counter() - began
        request.cancel()
        self._engine.step()
        stats = request.stats
        # Of an answer that prefill alone has ended there are no counts yet.
        accepted = stats.accepted_by_depth or [0] * self._depth
        return request.token_ids[:max_tokens], (stats.num_forwards, accepted)


ENGINES: dict[str, Any] = {"vllm": Vllm, "jakiro": Jakiro, "chain": Chain}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    engine = ENGINES[job["engine"]](job)

    def say(line: dict[str, Any]) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    say({"version": engine.version})
    for line in sys.stdin:
        asked = json.loads(line)
        token_ids, (drafts, accepted) = engine.answer(asked["prompt_ids"], asked["max_tokens"])
        say(
            {
                "token_ids": token_ids,
                "seconds": engine.seconds,
                "drafts": drafts,
                "accepted": accepted,
            }
        )


if __name__ == "__main__":
    main()
