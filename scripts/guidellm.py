"""A foreign measurement of the server: guidellm, the load generator of the vLLM project.

    make load-guidellm

Starts ``jakiro serve`` with the bundled pair twice in turn, with drafting and with ``--drafter
none``, and lets guidellm ask the shipped prompts over a few streams at once, greedily. It runs in
an environment of its own; what it counts goes into a JSON report and a table beside it. Exit code 1
if any request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jakiro
from jakiro.bench.environment import environment
from jakiro.bench.workloads import load_tasks, plain_text
from jakiro.hub.files import replace_files
from scripts.server import Server

TOKENIZER = Path(jakiro.__file__).parent / "models" / "pico"
MEASURED = {
    "request_latency": "whole answer, s",
    "time_to_first_token_ms": "first token, ms",
    "time_per_output_token_ms": "per token, ms",
    "inter_token_latency_ms": "between tokens, ms",
    "output_tokens_per_second": "tokens/s",
    "requests_per_second": "answers/s",
    "output_token_count": "tokens of an answer",
}
"""Distributions in the report of guidellm, and what they are called here."""


def scenario(url: str, model: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What guidellm is told."""
    backend = {
        "kind": "openai_http",
        "target": url,
        "model": model,
        "request_format": "/v1/chat/completions",
        "max_tokens": options.tokens,
        "extras": {"body": {"temperature": 0}},
    }
    return {
        "metadata": {"name": "jakiro"},
        "spec": {
            "backend": backend,
            "profile": {"kind": "concurrent", "streams": [options.streams]},
            "constraints": [{"kind": "max_duration", "seconds": options.seconds}],
            "tokenizer": {"kind": "hf_auto", "model": str(TOKENIZER)},
            "data": [{"kind": "json_file", "path": str(folder / "prompts.jsonl")}],
            "outputs": [{"kind": "json", "path": str(folder / "report.json")}],
        },
    }


def measure(extra: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """One server, asked by guidellm: its counts, and the median and p95 of what it measured."""
    with tempfile.TemporaryDirectory() as name, Server([*options.serve, *extra]) as server:
        folder = Path(name)
        prompts = [plain_text(p) for task in load_tasks(["demo", "gsm8k"]) for p in task.prompts]
        lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(lines), "utf-8")
        told = scenario(server.url, server.wait(), folder, options)
        (folder / "scenario.json").write_text(json.dumps(told), "utf-8")
        command = [
            options.guidellm,
            "run",
            "-c",
            str(folder / "scenario.json"),
            "--disable-console",
        ]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
        subprocess.run(command, check=True, env=os.environ | offline)
        (found,) = json.loads((folder / "report.json").read_text("utf-8"))["benchmarks"]
    metrics = found["metrics"]
    return {
        "requests": metrics["request_totals"],
        **{name: _summary(metrics[name]["successful"]) for name in MEASURED},
    }


def _summary(values: dict[str, Any]) -> dict[str, float]:
    p95 = values["percentiles"]["p95"]
    return {name: round(values[name], 3) for name in ("mean", "median")} | {"p95": round(p95, 3)}


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        f"`{' '.join(report['command'])}`, guidellm {report['guidellm']}, commit "
        f"{report['environment']['commit']}. Mean, median, 95th percentile.",
        "",
        "| | drafting | without |",
        "|---|---|---|",
    ]
    both = report["drafted"], report["plain"]
    counts = [
        ", ".join(str(own["requests"][name]) for name in ("successful", "incomplete", "errored"))
        for own in both
    ]
    lines.append(f"| answers whole, cut by the end, failed | {' | '.join(counts)} |")
    for name, told in MEASURED.items():
        cells = [", ".join(f"{value:g}" for value in own[name].values()) for own in both]
        lines.append(f"| {told} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guidellm", required=True, help="the command, in its own environment")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the table beside it as .md")
    parser.add_argument("serve", nargs="*", help="options of jakiro serve, behind --")
    options = parser.parse_args()
    version = subprocess.run(
        [options.guidellm, "--version"], check=True, capture_output=True, text=True
    )
    report = {
        "environment": asdict(environment()),
        "guidellm": version.stdout.split()[-1],
        "command": ["python", "-m", "scripts.guidellm", *sys.argv[1:]],
        "drafted": measure([], options),
        "plain": measure(["--drafter", "none"], options),
    }
    text = json.dumps(report, indent=2) + "\n"
    replace_files(
        {
            options.out: lambda path: path.write_text(text),
            options.out.with_suffix(".md"): lambda path: path.write_text(table(report), "utf-8"),
        }
    )
    print(table(report))
    failed = report["drafted"]["requests"]["errored"] + report["plain"]["requests"]["errored"]
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
