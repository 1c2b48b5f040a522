"""Memory of plain against speculative decoding: the peak of a process, and its growth.

    python scripts/memory.py --drafter none --drafter jakiro --drafter suffix_automaton+jakiro
    python scripts/memory.py --suite methods --heads heads --requests 40 --out memory.json

Each drafter runs in a process of its own, since a process never gives its peak back. Growth is the
resident size after all requests, minus that after the first quarter of them, which fills buffers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

import jakiro
from jakiro.bench.environment import environment
from jakiro.bench.methods import Workshop
from jakiro.bench.suites import Row, load_suite


def peak_bytes() -> int:
    """The most this process has held at once (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024


def measure(options: argparse.Namespace, drafter: str) -> dict[str, float]:
    """MiB of one drafter, in this process."""
    plain = jakiro.load(options.target, "none", max_batch_size=4)
    row = Row("measured", drafter, options.tree)
    engine = Workshop(plain, options.heads, max_batch_size=4).open(row)[1].engine
    generator = torch.Generator().manual_seed(0)
    size = (options.requests, 48)
    prompts = torch.randint(engine.target.vocab_size, size, generator=generator).tolist()
    asked = jakiro.SamplingParams(max_new_tokens=options.max_new_tokens, ignore_eos=True)
    process, resident = psutil.Process(), []
    for start in range(0, len(prompts), 4):
        engine.generate(prompts[start : start + 4], asked)
        resident.append(process.memory_info().rss)
    settled = resident[len(resident) // 4]
    mib = 2**20
    return {"peak": peak_bytes() / mib, "growth": (resident[-1] - settled) / mib}


def main() -> None:
    """Measure every drafter in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--target", default="pico")
    parser.add_argument("--drafter", action="append", help="default: none and jakiro")
    parser.add_argument("--suite", help="the drafters of a suite of jakiro bench, and none")
    parser.add_argument("--heads", type=Path, help="as of jakiro bench")
    parser.add_argument("--out", type=Path, help="a report, for scripts/docs.py")
    parser.add_argument("--tree", help="as of jakiro generate")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options, options.here)))
        return
    drafters = options.drafter or ["none", "jakiro"]
    if options.suite:
        drafters = ["none", *dict.fromkeys(row.drafter for row in load_suite(options.suite).rows)]
    rows = []
    print("| drafter | peak, MiB | growth, MiB |\n|---|---|---|")
    for drafter in drafters:
        command = [sys.executable, *sys.argv, "--here", drafter]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {drafter} | {found['peak']:.0f} | {found['growth']:+.1f} |", flush=True)
        rows.append({"drafter": drafter, **found})
    if options.out is not None:
        found = {
            "environment": asdict(environment()),
            "command": ["python", *sys.argv],
            "rows": rows,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
