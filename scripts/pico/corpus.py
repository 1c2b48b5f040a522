"""Read the training text: conversations and plain documents from JSON lines.

A *document* here is a list of ``(text, trained)`` pieces; ``trained`` marks text the model is
asked to predict in conversations (the assistant's words). Plain text is one trained piece.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

BOS, EOS, USER, ASSISTANT, SYSTEM, PAD = (
    "<|begin|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|pad|>",
)
SPECIAL_TOKENS = [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT]
ROLE_TOKENS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(record: dict) -> str:
    """One training string: the chat template applied, or the text between BOS and EOS."""
    if "messages" not in record:
        return f"{BOS}{record['text'].strip()}{EOS}"
    parts = [BOS]
    for message in record["messages"]:
        parts += [ROLE_TOKENS[message["role"]], message["content"].strip()]
        if message["role"] == "assistant":
            parts.append(EOS)
    return "".join(parts)


def records(files: list[Path]) -> Iterator[dict]:
    """Every JSON object of every file, in order."""
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def split(files: list[Path], held_out: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Shuffle all records with ``seed`` and set a share ``held_out`` aside."""
    everything = list(records(files))
    random.Random(seed).shuffle(everything)
    cut = int(len(everything) * held_out)
    return everything[cut:], everything[:cut]
