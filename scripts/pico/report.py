"""Measure the trained target on held-out text and write its model card.

``python scripts/pico/report.py --data DIR --target DIR`` prints and writes ``report.json`` and
``README.md`` into the target directory: bits per byte against an interpolated 5-gram model over
the same tokens and training text, the share of repeated 8-grams in greedy answers, samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import render
from transformers import AutoModelForCausalLM, AutoTokenizer

ORDER, DISCOUNT = 5, 0.75
QUESTIONS = (
    "What is psychology?",
    "Tom has 5 apples and buys 7 more. How many apples does he have now?",
    "Please write a Python function that returns the larger of two numbers.",
    "Tell me a short story about a girl and a dog.",
)


class FiveGram:
    """Interpolated absolute discounting over token n-grams, packed into 64-bit integers."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for order in range(1, ORDER + 1):
            keys, counts = np.unique(self._pack(tokens, order), return_counts=True)
            heads, start = np.unique(keys // vocab_size, return_index=True)
            totals = np.add.reduceat(counts, start)
            kinds = np.diff(np.append(start, len(keys)))
            self.grams.append((keys, counts))
            self.contexts.append((heads, totals, kinds))

    def nats(self, tokens: np.ndarray) -> float:
        """Summed negative log-likelihood of all tokens after the first ``ORDER - 1``."""
        size = len(tokens) - ORDER + 1
        probs = np.full(size, 1 / self.vocab_size)
        for order in range(1, ORDER + 1):
            keys = self._pack(tokens, order)[ORDER - order :]
            count = self._find(*self.grams[order - 1], keys)
            heads, totals, kinds = self.contexts[order - 1]
            total = self._find(heads, totals, keys // self.vocab_size)
            kind = self._find(heads, kinds, keys // self.vocab_size)
            known = total > 0
            own = np.maximum(count - DISCOUNT, 0) / np.maximum(total, 1)
            probs = np.where(known, own + DISCOUNT * kind / np.maximum(total, 1) * probs, probs)
        return float(-np.log(probs).sum())

    def _pack(self, tokens: np.ndarray, order: int) -> np.ndarray:
        packed = np.zeros(len(tokens) - order + 1, dtype=np.int64)
        for i in range(order):
            packed = packed * self.vocab_size + tokens[i : len(tokens) - order + 1 + i]
        return packed

    @staticmethod
    def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)


@torch.no_grad()
def model_nats(model, documents: list[list[int]]) -> float:
    """Summed negative log-likelihood, each document cut into windows of the context length."""
    total = 0.0
    for ids in documents:
        for start in range(0, len(ids) - 1, 1023):
            window = torch.tensor([ids[start : start + 1024]])
            logits = model(window).logits[0, :-1]
            total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    return total


def repeated_share(ids: list[int], size: int = 8) -> float:
    """Share of n-grams that occurred before in the same text."""
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    model = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    held_out = [json.loads(line) for line in (args.data / "held_out.jsonl").open()]
    texts = [render(record) for record in held_out]
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    num_bytes = sum(len(tokenizer.decode(d, skip_special_tokens=True).encode()) for d in documents)

    train = np.concatenate([np.load(args.data / f"{n}.npy") for n in ("text", "chat")])
    grams = FiveGram(train.astype(np.int64), len(tokenizer))
    flat = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])
    to_bits = 1 / np.log(2) / num_bytes
    answers, shares = [], []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        ids = ids["input_ids"]
        out = model.generate(ids, max_new_tokens=128, do_sample=False)[0, ids.shape[1] :]
        answers.append((question, tokenizer.decode(out, skip_special_tokens=True)))
        shares.append(repeated_share(out.tolist()))
    last = [json.loads(line) for line in args.history.open()][-20:]
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": last[-1]["step"],
        "train_loss": round(float(np.mean([line["loss"] for line in last])), 3),
        "bits_per_byte": round(model_nats(model, documents) * to_bits, 3),
        "bits_per_byte_5gram": round(grams.nats(flat) * to_bits, 3),
        "repeated_8grams": round(float(np.mean(shares)), 3),
    }
    (args.target / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for question, answer in answers:
        print(f"\n> {question}\n{answer}")


if __name__ == "__main__":
    main()
