"""What a cycle costs at the sizes of real targets, and whether texts are equal on this machine.

    python -m scripts.sizes --out docs/benchmarks/gpu.json      # on one GPU: 8B models
    python -m scripts.sizes --out docs/benchmarks/sizes.json    # on a CPU: a 0.5B model
    python -m scripts.sizes --tiny --out sizes.json             # the same code, in seconds

*Costs*: Llama-3-8B and Qwen3-8B, or Qwen2.5-0.5B, in their sizes, bfloat16, with random weights
that are made on the device, and random heads of the published sizes with the published tree (on a
CPU a smaller one), eager and compiled; what the times are is said in ``scripts/marks.py``.
``tree_ms``: verifying trees of so many nodes. ``host_syncs``: how often the host waited for the
device in a cycle, and where.

*Pair*: the comparison of ``jakiro check`` with the bundled models, in float32, where any difference
is reported with its margin, and in bfloat16, where near-ties are counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import jakiro
from jakiro.api import eos_ids
from jakiro.bench.environment import environment
from jakiro.bench.equality import Judge
from jakiro.bench.losslessness import check_pair
from jakiro.bench.workloads import load_tasks, plain_text
from jakiro.cli.session import plain
from jakiro.drafters.base import Drafter
from jakiro.drafters.nn import DraftHead
from jakiro.drafters.registry import find
from jakiro.engine.engine import Engine
from jakiro.hub.files import replace_files
from jakiro.target.target import Target
from jakiro.train.config import HeadOptions, TrainConfig
from jakiro.train.feature_head import head_config
from jakiro.tree.shapes import TreePlan
from scripts.marks import ACCEPTS_SOME, Bench

_ALIKE = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    # Room for the longest context; random weights know no difference.
    "max_position_embeddings": 32768,
}
_LLAMA = {"vocab_size": 128256, "intermediate_size": 14336, "num_hidden_layers": 32}
_QWEN = {"vocab_size": 151936, "intermediate_size": 12288, "num_hidden_layers": 36}
_SMALL = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
SIZES: dict[str, tuple[type[PreTrainedConfig], dict[str, int]]] = {
    "Llama-3-8B": (LlamaConfig, _ALIKE | _LLAMA),
    "Qwen3-8B": (Qwen3Config, _ALIKE | _QWEN),
    "Qwen2.5-0.5B": (Qwen2Config, _SMALL),
}
_TINY_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
HEADS = {"eagle2": HeadOptions(), "jakiro": HeadOptions(expert_size=4096)}


@dataclass(frozen=True)
class Scale:
    """How much is measured. One of batch and context grows at a time; ``compiled_batches``: those
    that are measured compiled, too, since each takes a minute to compile. ``rounds``: as of
    ``Bench``. ``pairs``: dtype of the bundled pair, and whether it is compiled."""

    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    contexts: Sequence[int] = (256, 1024, 4096, 16384)
    nodes: Sequence[int] = (8, 16, 32, 64)
    compiled_batches: Sequence[int] = (1, 8)
    backend: str = "inductor"
    tree: str = "dynamic:6,10,59"
    rounds: tuple[int, int] = (5, 20)
    num_prompts: int = 8
    num_tokens: int = 64
    pairs: Sequence[tuple[str, bool]] = (("float32", False), ("float32", True), ("bfloat16", False))
    models: Sequence[str] = ("Llama-3-8B", "Qwen3-8B")

    def places(self, is_compiled: bool) -> list[tuple[int, int]]:
        """Batch and context of each cell."""
        batches = self.compiled_batches if is_compiled else self.batches
        first, *longer = self.contexts
        return [(batch, first) for batch in batches] + [(1, length) for length in longer]


TINY = Scale(
    (1, 2), (16, 24), (8,), (1,), "eager", "dynamic:4,2,10", (1, 2), 1, 6, (("float32", False),)
)
CPU = Scale(
    batches=(1,),
    contexts=(256,),
    nodes=(2, 4, 8, 16, 32),
    compiled_batches=(1,),
    tree="dynamic:6,4,15",
    rounds=(3, 9),
    pairs=(("bfloat16", False), ("bfloat16", True)),
    models=("Qwen2.5-0.5B",),
)


def drafter_of(method: str, target: Target) -> Drafter:
    """``none``, or a random head of ``method``."""
    if method == "none":
        plain: Drafter = find(method).load()()
        return plain
    options = HEADS[method]
    if target.hidden_size < (options.expert_size or 0):
        options = replace(options, expert_size=target.hidden_size)
    with torch.device(target.device):
        head = DraftHead(head_config(target, TrainConfig(method=method, head=options)))
    drafter: Drafter = find(method).load()(head.to(target.dtype), target)
    return drafter


def costs(model: Any, name: str, is_compiled: bool, scale: Scale) -> Iterator[dict[str, Any]]:
    """A record of each cell of ``model``: plain decoding first, then each head."""
    target = Target(model)
    if is_compiled:
        target.compile(scale.backend)
    for method in ("none", *HEADS):
        drafter = drafter_of(method, target)
        if is_compiled:
            drafter.compile(scale.backend)
        plan = None if method == "none" else TreePlan.parse(scale.tree)
        engine = Engine(target, drafter, ACCEPTS_SOME, plan=plan, max_batch_size=scale.batches[-1])
        for number, place in enumerate(scale.places(is_compiled)):
            # Noise of the vocabulary is a cost of its own.
            for temperature in (0.0,) if number else (0.0, 1.0):
                settings = ("model", "head", "is_compiled", "batch", "context", "temperature")
                values = (name, method, is_compiled, *place, temperature)
                record = dict(zip(settings, values, strict=True))
                yield record | cell(engine, place, temperature, scale)


def cell(
    engine: Engine, place: tuple[int, int], temperature: float, scale: Scale
) -> dict[str, Any]:
    """What is measured at one place, or why nothing could be."""
    is_gpu = engine.target.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    bench = Bench(engine, place, temperature, scale.rounds)
    try:
        found = bench.cycle()
        if engine.drafter.name == "none" and not temperature:
            found["tree_ms"] = bench.tree_forwards(scale.nodes)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        bench.close()
        torch.cuda.empty_cache()
    found["target_compile_ms"] = engine.target.compile_ms
    found["peak_bytes"] = torch.cuda.max_memory_allocated() if is_gpu else None
    return found


def random_model(config: PreTrainedConfig, device: torch.device) -> Any:
    """A model of ``config`` in bfloat16, made on ``device``. Its last layer is scaled until drafts
    are as sure of their tokens as trained ones, so that trees grow deep."""
    with torch.device(device), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        model.get_output_embeddings().weight.mul_(1024 / config.hidden_size**0.5)
    return model


def pair(dtype: str, is_compiled: bool, device: torch.device, scale: Scale) -> dict[str, Any]:
    """The bundled models against plain decoding and uncached recomputation: how many texts of each
    setting are equal, near-ties and bugs, and every first difference."""
    drafted = jakiro.load("pico", dtype=dtype, device=device, compile=is_compiled)
    model, tokenizer = drafted.target.model, drafted.tokenizer
    prompts = [
        drafted.encode(plain_text(prompt))
        for task in load_tasks(["demo"], scale.num_prompts)
        for prompt in task.prompts
    ]
    judge = Judge(model, eos_ids(model, tokenizer))
    cells = check_pair(drafted, plain(drafted), judge, prompts, max_new_tokens=scale.num_tokens)
    counts: dict[str, Counter[str]] = {}
    for each in cells:
        counts.setdefault(f"{each.setting}: {each.comparison}", Counter())[each.outcome] += 1
    return {
        "dtype": dtype,
        "is_compiled": is_compiled,
        "tau": drafted.stats.tau,
        "num_bugs": sum(count["bug"] for count in counts.values()),
        "outcomes": counts,
        "differences": [asdict(each) for each in cells if each.divergence is not None],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, writing the report after every cell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=("all", "costs", "pair"), default="all")
    parser.add_argument("--model", choices=SIZES, action="append", help="default: as above")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does it run?")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    scale = TINY if options.tiny else CPU if device.type == "cpu" else Scale()
    report: dict[str, Any] = {
        "environment": asdict(environment()),
        "command": ["python", "-m", "scripts.sizes", *(arguments or [])],
        "costs": [],
        "pair": [],
    }

    def keep(part: str, record: dict[str, Any]) -> None:
        report[part].append(record)
        text = json.dumps(report, indent=1) + "\n"
        replace_files({options.out: lambda path: path.write_text(text, "utf-8")})
        print(part, {name: value for name, value in record.items() if name != "differences"})

    if options.part != "costs":
        for dtype, is_compiled in scale.pairs:
            keep("pair", pair(dtype, is_compiled, device, scale))
    for name in (options.model or scale.models) if options.part != "pair" else ():
        kind, sizes = SIZES[name]
        model = random_model(kind(**(sizes | _TINY_SIZES if options.tiny else sizes)), device)
        for is_compiled in (False, True):
            for record in costs(model, name, is_compiled, scale):
                keep("costs", record)
        del model


if __name__ == "__main__":
    main()
