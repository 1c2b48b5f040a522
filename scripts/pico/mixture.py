"""Take a share of the target's own training text, of every file.

``python scripts/pico/mixture.py --data DIR --out FILE`` writes conversations and passages as the
target was trained on them. What it samples at T = 1 beside a question that it has no answer to is
text of all these kinds, and the heads have to draft that too.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from corpus import records

CHATS = {
    "exercism": 100,
    "openstax_glossary": 1800,
    "chatterbot": 1500,
    "taskmaster4": 1000,
    "topical_chat": 700,
    "factbook_qa": 1200,
}
"""Conversations per file."""
TEXTS = {
    "books": 350,
    "exercism_docs": 60,
    "factbook": 250,
    "openstax": 350,
    "peps": 250,
    "python_code": 500,
    "tinystories": 250,
}
"""Passages per file."""
LONGEST = 780
"""Characters of a passage: what about fills a sample of 256 tokens."""


def passage(text: str, rng: random.Random) -> str:
    """A part of ``text`` from a line of it on."""
    starts = [0, *(i + 1 for i, sign in enumerate(text[:-LONGEST]) if sign == "\n")]
    start = rng.choice(starts)
    return text[start : start + LONGEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    mixed = []
    for name, count in CHATS.items():
        found = list(records([args.data / "chat" / f"{name}.jsonl"]))
        mixed += [{"messages": r["messages"]} for r in rng.sample(found, count)]
    for name, count in TEXTS.items():
        found = list(records([args.data / "text" / f"{name}.jsonl"]))
        mixed += [{"text": passage(rng.choice(found)["text"], rng)} for _ in range(count)]
    rng.shuffle(mixed)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in mixed)
    args.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
