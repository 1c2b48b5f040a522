"""Engines whose target says exactly what a test wants, drafted right and in long blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from jakiro.engine.engine import Engine
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.verify import find
from tests.conformance.doubles import Scripted
from tests.engine.bytes_tokenizer import END, tokenizer
from tests.families import build

PROMPT = [72, 105]
VOCAB_SIZE = 272


@cache
def target() -> Target:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    return Target(build(LlamaForCausalLM, config))


class Says:
    """A logits processor under which the answer to ``prompt`` is ``script``."""

    def __init__(self, script: Sequence[int], prompt: Sequence[int] = PROMPT) -> None:
        self._script, self._start = list(script), len(prompt)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if ids.shape[1] - self._start < len(self._script):
            logits[:, self._script[ids.shape[1] - self._start]] += 1000
        return logits


def engine(script: Sequence[int], depth: int = 6, **kwargs: Any) -> Engine:
    """Drafts ``script`` in blocks of ``depth`` (0: not at all); the tokenizer is of bytes."""
    drafter = Scripted([[*PROMPT, *script]], lambda right: right if depth else [])
    settings: dict[str, Any] = {"tokenizer": tokenizer(), "eos_ids": [END]} | kwargs
    return Engine(target(), drafter, find("match"), plan=TreePlan.chain(depth or 1), **settings)


def log_probs_after(ids: Sequence[int]) -> Tensor:
    """[V]: raw log probabilities after ``ids``."""
    with torch.inference_mode():
        return target().model(torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1)
