"""Measures the views that a target drafts for itself with: what a drafted token costs beside a
target forward, in CPU time (medians, in alternation), and how many tokens a cycle yields.

    python scripts/views.py pair     the bundled target, short prompts
    python scripts/views.py moe      fewer experts, random weights: cost only
    python scripts/views.py long --out docs/benchmarks/views.json
                                     against context length: the bundled target as far as it
                                     goes, then random weights, cost only

``long`` writes a report that ``scripts/docs.py`` puts into the page of benchmarks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import jakiro
from jakiro.bench.environment import environment
from jakiro.bench.workloads import load_tasks, plain_text
from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.double_sparsity import DoubleSparsity
from jakiro.drafters.duo_attention import DuoAttention
from jakiro.drafters.early_exit import EarlyExit
from jakiro.drafters.fewer_experts import FewerExperts
from jakiro.drafters.layer_skip import LayerSkip
from jakiro.drafters.low_bit import LowBit
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.drafters.sparse_kv import SparseKV
from jakiro.drafters.swift import Swift
from jakiro.drafters.token_skip import TokenSkip
from jakiro.engine.engine import Engine
from jakiro.hub.files import replace_files
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree

Make = Callable[[Target], SelfDrafter]
SHORT: dict[str, Make] = {
    "layer_skip, speedup 2": LayerSkip,
    "layer_skip, speedup 1.33": lambda target: LayerSkip(target, 4 / 3),
    "swift": Swift,
    "token_skip": TokenSkip,
    "early_exit, half": EarlyExit,
    "early_exit, three quarters": lambda target: EarlyExit(target, target.num_layers * 3 // 4),
    "sparse_kv": SparseKV,
    "low_bit, 8": LowBit,
    "low_bit, 4": lambda target: LowBit(target, 4),
}
LONG: dict[str, Make] = {
    "sparse_kv": SparseKV,
    "duo_attention": DuoAttention,
    "double_sparsity": DoubleSparsity,
    "low_bit": LowBit,
}
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
CHAIN = TreePlan.chain(4)


def cpu_ms(run: Callable[..., object], *arguments: object) -> float:
    began = time.process_time()
    run(*arguments)
    return 1e3 * (time.process_time() - began)


class LogSoftmax:
    """Draft scores without noise."""

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        return logits.log_softmax(-1)


@torch.inference_mode()
def cost(drafter: SelfDrafter, target: Target, cache: KVCache, repeats: int) -> dict[str, float]:
    """Median cost of one row through the target (ms), and of a token of a drafted chain relative
    to it. What is done once per text is done before."""
    root, length = torch.tensor([7]), cache.lengths[0]
    tree = TokenTree.root_only(root)
    depth = CHAIN.depth
    request = DraftRequest(root, [length], [depth], CHAIN, LogSoftmax(), cache=cache)
    drafter.begin(torch.randint(target.vocab_size, (length,)).tolist(), None)
    drafter.confidence = 0.0
    drafter.draft(request)
    pairs = [
        (cpu_ms(target.verify, tree, cache), cpu_ms(drafter.draft, request) / depth)
        for _ in range(repeats)
    ]
    return {
        "target_ms": median(whole for whole, _ in pairs),
        "ratio": median(mine / whole for whole, mine in pairs),
    }


def filled(target: Target, length: int) -> KVCache:
    """A cache of one row of random keys and values."""
    cache = target.new_cache()
    with torch.inference_mode():
        target.prefill([1, 2, 3], cache, cache.admit())
        like = cache.save(0, 3).data
        cache.keep([])
        shapes = [(*part.shape[:2], length, part.shape[3]) for part in like]
        cache.admit(KVRow(length, tuple(torch.randn(shape) for shape in shapes)))
    return cache


def yields(
    plain: Engine, make: Make, prompts: list[list[int]], num_new: int
) -> dict[str, float | None]:
    """Tokens per cycle at T = 0 and 1 and, at T = 0, CPU time of plain decoding over that of
    drafting, prefill included."""
    engine = jakiro.load(plain.target.model, make, tokenizer=plain.tokenizer)
    greedy, sampled = (
        jakiro.SamplingParams(
            max_new_tokens=num_new, temperature=temperature, seed=1, ignore_eos=True
        )
        for temperature in (0.0, 1.0)
    )
    speed = median(
        cpu_ms(plain.generate, [prompt], greedy) / cpu_ms(engine.generate, [prompt], greedy)
        for prompt in prompts
    )
    taus = [engine.stats.tau]
    engine.reset_stats()
    engine.generate(prompts, sampled)
    return {"tau_0": taus[0], "tau_1": engine.stats.tau, "speedup": speed}


def texts(plain: Engine, length: int, count: int) -> list[list[int]]:
    """``count`` prompts of ``length`` tokens: tasks of one kind behind each other, which the target
    then continues."""
    tasks = load_tasks(["gsm8k", "humaneval"])
    lines = ["\n\n".join(plain_text(prompt) for prompt in task.prompts) for task in tasks]
    ids = [plain.tokenizer.encode(text) for text in lines if plain.tokenizer is not None]
    return [
        own[start * length : (start + 1) * length]
        for start, own in zip(range(count), [*ids] * count, strict=False)
    ]


def pair(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    plain = jakiro.load("pico", "none")
    cache = filled(plain.target, 150)
    prompts = texts(plain, 150, options.limit)
    for name, make in SHORT.items():
        costs = cost(make(plain.target), plain.target, cache, options.repeats)
        yield {"view": name, **costs, **yields(plain, make, prompts, options.new)}


def moe(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=4)
    target = Target(MixtralForCausalLM(config).eval())
    cache = filled(target, 150)
    for top_k in (2, 1):
        costs = cost(FewerExperts(target, top_k), target, cache, options.repeats)
        yield {"view": f"fewer_experts, {top_k} of 4", **costs}


def long(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    plain = jakiro.load("pico", "none")
    for length in options.context:
        cache = filled(plain.target, length)
        prompts = texts(plain, length, options.limit)
        for name, make in LONG.items():
            costs = cost(make(plain.target), plain.target, cache, options.repeats)
            found = yields(plain, make, prompts, options.new)
            yield {"target": "pico", "context": length, "view": name, **costs, **found}
    torch.manual_seed(0)
    longest = max(options.synthetic)
    config = LlamaConfig(**SIZES, max_position_embeddings=longest + 64)
    target = Target(LlamaForCausalLM(config).eval())
    for length in options.synthetic:
        cache = filled(target, length)
        for name, make in LONG.items():
            costs = cost(make(target), target, cache, options.repeats)
            yield {"target": "random", "context": length, "view": name, **costs}


def report(rows: Iterable[dict[str, Any]], out: Path | None) -> None:
    """Every row as it comes; all of them to ``out``."""
    done = []
    for row in rows:
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
        sys.stdout.flush()
        done.append(row)
    if out is None:
        return
    found = {
        "environment": asdict(environment()),
        "command": ["python", *sys.argv],
        "sizes": SIZES,
        "rows": done,
    }
    text = json.dumps(found, indent=1) + "\n"
    replace_files({out: lambda path: path.write_text(text, "utf-8")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pair", "moe", "long"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int, default=6, help="prompts")
    parser.add_argument("--new", type=int, default=48, help="tokens per answer")
    parser.add_argument("--repeats", type=int, default=25, help="timings of a draft")
    parser.add_argument("--context", type=int, nargs="+", default=[128, 256, 512, 896])
    lengths = [1024, 2048, 4096, 8192, 16384]
    parser.add_argument("--synthetic", type=int, nargs="+", default=lengths)
    options = parser.parse_args()
    report({"pair": pair, "moe": moe, "long": long}[options.what](options), options.out)
