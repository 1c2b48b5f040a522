"""Let the trained target answer the first question of training conversations.

``python scripts/pico/answers.py --data DIR --target DIR --out FILE`` writes conversations whose
answers are the target's own words, every other one greedy, the rest sampled at T = 1: the text the
heads will have to draft. Run again to go on after an interruption.
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
GROUP = 256
LONGEST = 1200
"""Characters of a question."""


def questions(data: Path, seed: int) -> list[str]:
    """First questions, shuffled, by file as in ``SHARES``."""
    picked = []
    for name, count in SHARES.items():
        asked = [r["messages"][0]["content"] for r in records([data / "chat" / f"{name}.jsonl"])]
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
    args = parser.parse_args()
    engine = jakiro.load(args.target, "none", dtype="float32", max_batch_size=args.batch)
    asked = questions(args.data, args.seed)
    done = len(args.out.read_text().splitlines()) if args.out.exists() else 0
    with args.out.open("a", encoding="utf-8") as file:
        for start in range(done, len(asked), GROUP):
            chats = [[{"role": "user", "content": q}] for q in asked[start : start + GROUP]]
            params = [
                jakiro.SamplingParams(
                    max_new_tokens=args.max_new_tokens,
                    temperature=float(i % 2),
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
