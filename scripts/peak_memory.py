"""Peak memory of the token loss: in chunks through the frozen head, against all logits at once.

    python scripts/peak_memory.py --rows 64 --rows 256 --out docs/benchmarks/token-loss.json

Each form runs in a process of its own, since a process never gives its peak back; what it held
before the loss is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from jakiro.bench.environment import environment
from jakiro.target.target import Target
from jakiro.train.losses import _SoftCrossEntropy

FORMS = ("chunked", "naive")


def target_of(vocabulary: int, hidden: int) -> Target:
    """One small layer under an LM head of full size."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    target = Target(LlamaForCausalLM(config).eval())
    target.model.requires_grad_(False)
    return target


def naive(predicted: Tensor, truth: Tensor, target: Target) -> Tensor:
    """The formula as it is written: mean over the rows of each prediction, [P]."""
    teacher = target.lm_head(truth).softmax(-1)
    log_probs = target.lm_head(predicted).log_softmax(-1)
    return -(teacher * log_probs).sum(-1).mean(1)


def chunked(predicted: Tensor, truth: Tensor, target: Target) -> Tensor:
    """What training uses, for heads of one feature per pair, [P]."""
    share = torch.full(predicted.shape[:2], 1 / predicted.shape[1])
    alone, sure = predicted[:, :, None], torch.zeros(*predicted.shape[:2], 1)
    losses: Tensor = _SoftCrossEntropy.apply(alone, sure, truth, share, target)[0]  # type: ignore[no-untyped-call]
    return losses


def measure(form: str, rows: int, vocabulary: int, hidden: int) -> None:
    """Print as JSON: loss, a gradient norm, and the bytes that loss and backward added to the
    peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = target_of(vocabulary, hidden)
    truth = F.normalize(torch.randn(rows, hidden)) * hidden**0.5
    predicted = F.normalize(torch.randn(2, rows, hidden), dim=-1) * hidden**0.5
    predicted.requires_grad_()
    # Building the target has left the peak above what is held now: start it anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    loss = (naive if form == "naive" else chunked)(predicted, truth, target).sum()
    loss.backward()
    assert predicted.grad is not None
    added = peak_bytes() - before
    found = {"loss": loss.item(), "gradient_norm": predicted.grad.norm().item()}
    print(json.dumps({"rows": rows, "form": form, **found, "added_bytes": added}))


def peak_bytes() -> int:
    """The most this process has held at once (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024


def main() -> None:
    """Measure every form at every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="positions of a step")
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--form", choices=FORMS, help="measure one form, in this process")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    sizes = options.rows or [64, 256]
    if options.form:
        measure(options.form, sizes[0], options.vocabulary, options.hidden)
        return
    found = []
    print("rows  form     loss       |gradient|    added to the peak")
    for rows in sizes:
        for form in FORMS:
            command = [sys.executable, str(Path(__file__)), "--form", form, "--rows", str(rows)]
            command += ["--vocabulary", str(options.vocabulary), "--hidden", str(options.hidden)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(one := json.loads(done.stdout))
            numbers = f"{one['loss']:.6f}  {one['gradient_norm']:.6e}"
            print(f"{rows:<5} {form:<8} {numbers}  {one['added_bytes'] / 2**20:8.1f} MiB")
    if options.out:
        sizes_of = {"vocabulary": options.vocabulary, "hidden": options.hidden}
        record = {"environment": asdict(environment()), **sizes_of, "measured": found}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
