"""Let the trained target answer the first question of training conversations.

``python scripts/pico/answers.py --data DIR --target DIR --out FILE`` writes conversations whose
answers are the target's own words, every other one greedy, the rest sampled at T = 1: the text the
heads will have to draft. ``--broad``: all sampled, and to questions of other kinds, plain lines of
text among them, that the target mostly has no answer to. Run again to go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from corpus import records

import jakiro

SHARES = {
    "gsm8k": 1500,
    "python_functions": 1300,
    "exercism": 150,
    "openstax_glossary": 400,
    "chatterbot": 400,
    "taskmaster4": 300,
    "topical_chat": 300,
    "factbook_qa": 400,
}
"""Conversations per file."""
BROAD = {
    "openstax_glossary": 600,
    "chatterbot": 450,
    "taskmaster4": 250,
    "topical_chat": 600,
    "factbook_qa": 350,
    "exercism": 50,
    "books": 150,
    "openstax": 150,
    "tinystories": 100,
    "peps": 50,
}
"""The same with ``--broad``."""
GROUP = 256
LONGEST = 1200
"""Characters of a question."""


def asked_in(record: dict) -> str:
    """The first question of a conversation; of plain text, a line from its middle."""
    if "messages" in record:
        return record["messages"][0]["content"]
    lines = [line for line in record["text"].splitlines() if line.strip()]
    return lines[len(lines) // 2].strip()


def questions(data: Path, shares: dict[str, int], seed: int) -> list[str]:
    """First questions, shuffled, as many of each file as ``shares`` says."""
    picked = []
    for name, count in shares.items():
        (file,) = data.glob(f"*/{name}.jsonl")
        asked = [asked_in(record) for record in records([file])]
        asked = [question for question in asked if len(question) <= LONGEST]
        random.Random(seed).shuffle(asked)
        picked += asked[:count]
    random.Random(seed).shuffle(picked)
    return picked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broad", action="store_true")
    args = parser.parse_args()
    engine = jakiro.load(args.target, "none", dtype="float32", max_batch_size=args.batch)
    asked = questions(args.data, BROAD if args.broad else SHARES, args.seed)
    done = len(args.out.read_text().splitlines()) if args.out.exists() else 0
    with args.out.open("a", encoding="utf-8") as file:
        for start in range(done, len(asked), GROUP):
            chats = [[{"role": "user", "content": q}] for q in asked[start : start + GROUP]]
            params = [
                jakiro.SamplingParams(
                    max_new_tokens=args.max_new_tokens,
                    temperature=float(i % 2 or args.broad),
                    seed=args.seed + start + i,
                )
                for i in range(len(chats))
            ]
            for chat, answer in zip(chats, engine.generate(chats, params), strict=True):
                chat = [*chat, {"role": "assistant", "content": answer.text}]
                file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")
            file.flush()
            print(f"{min(start + GROUP, len(asked))} of {len(asked)}", flush=True)


if __name__ == "__main__":
    main()
