"""Measures the views that a target drafts for itself with: what a draft forward costs beside a
target forward, in CPU time (medians, in alternation), and how many tokens a cycle yields.

    python scripts/views.py pair    the bundled target, short prompts
    python scripts/views.py long    sparse attention against context length, random weights
    python scripts/views.py moe     fewer experts, random weights
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import jakiro
from jakiro.bench.workloads import load_tasks
from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.early_exit import EarlyExit
from jakiro.drafters.fewer_experts import FewerExperts
from jakiro.drafters.layer_skip import LayerSkip
from jakiro.drafters.low_bit import LowBit
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.drafters.sparse_kv import SparseKV
from jakiro.drafters.swift import Swift
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree

VIEWS: dict[str, Callable[[Target], SelfDrafter]] = {
    "layer_skip, speedup 2": LayerSkip,
    "layer_skip, speedup 1.33": lambda target: LayerSkip(target, 4 / 3),
    "swift": Swift,
    "early_exit, half": EarlyExit,
    "early_exit, three quarters": lambda target: EarlyExit(target, target.num_layers * 3 // 4),
    "sparse_kv": SparseKV,
    "low_bit, 8": LowBit,
    "low_bit, 4": lambda target: LowBit(target, 4),
}
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
}
NUM_NEW, REPEATS = 48, 25


def cpu_ms(run: Callable[..., object], *arguments: object) -> float:
    began = time.process_time()
    run(*arguments)
    return 1e3 * (time.process_time() - began)


@torch.inference_mode()
def cost_ratio(view: Target, target: Target, cache: KVCache) -> tuple[float, float]:
    """Median cost of one row through the target (ms), and through the view relative to it."""
    root = TokenTree.root_only(torch.tensor([7]))
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for which, one in enumerate((target, view)):
            times[which].append(cpu_ms(one.verify, root, cache))
    plain = median(times[0])
    return plain, median(mine / whole for whole, mine in zip(*times, strict=True))


def filled(target: Target, length: int) -> KVCache:
    cache = target.new_cache()
    ids = torch.randint(target.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        target.prefill(ids.tolist(), cache, cache.admit())
    return cache


def pair() -> None:
    plain = jakiro.load("pico", "none")
    prompts = [p for task in load_tasks(["humaneval", "gsm8k"], 3) for p in task.prompts]
    cache = filled(plain.target, 150)
    print("| view | draft / target forward | tau, T = 0 | tau, T = 1 | speedup, T = 0 |")
    print("|---|---|---|---|---|")
    for name, make in VIEWS.items():
        engine = jakiro.load(plain.target.model, make, tokenizer=plain.tokenizer)
        view = engine.drafter
        assert isinstance(view, SelfDrafter)
        ratio = cost_ratio(view.model, plain.target, cache)[1]
        greedy, sampled = (
            jakiro.SamplingParams(max_new_tokens=NUM_NEW, temperature=temperature, seed=1)
            for temperature in (0.0, 1.0)
        )
        speed = median(
            cpu_ms(plain.generate, [prompt], greedy) / cpu_ms(engine.generate, [prompt], greedy)
            for prompt in prompts
        )
        taus = [engine.stats.tau]
        engine.reset_stats()
        engine.generate(prompts, sampled)
        taus.append(engine.stats.tau)
        print(f"| {name} | {ratio:.2f} | {taus[0]:.2f} | {taus[1]:.2f} | {speed:.2f} |", flush=True)


def long() -> None:
    torch.manual_seed(0)
    target = Target(LlamaForCausalLM(LlamaConfig(**SIZES)).eval())
    view = SparseKV(target, sinks=4, recent=256).model
    print("| context | target forward, ms | draft / target forward |")
    print("|---|---|---|")
    for length in (1024, 2048, 4096, 8192):
        plain, ratio = cost_ratio(view, target, filled(target, length))
        print(f"| {length} | {plain:.1f} | {ratio:.2f} |", flush=True)


def moe() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=4)
    target = Target(MixtralForCausalLM(config).eval())
    cache = filled(target, 150)
    print("| experts of 4 | draft / target forward |")
    print("|---|---|")
    for top_k in (2, 1):
        ratio = cost_ratio(FewerExperts(target, top_k).model, target, cache)[1]
        print(f"| {top_k} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    {"pair": pair, "long": long, "moe": moe}[sys.argv[1]]()
