"""The oracle of every text: one row, no cache, one token at a time.

Nothing of the package is used here. The logits are those of ``model(ids)`` on the whole text, the
processors are those of ``transformers``, the noise is computed with Python integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

WORD = (1 << 64) - 1
Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One token, and by how much its noisy logit beat the second best."""

    token: int
    margin: float


@dataclass(frozen=True)
class Settings:
    """What a request may ask; the names are those of the package."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0
    eos_ids: Sequence[int] = ()
    seed: int = 0
    choice_index: int = 0
    processors: Sequence[Processor] = ()


def generate(model: Any, prompt_ids: list[int], **settings: Any) -> list[int]:
    """The tokens that plain decoding emits after ``prompt_ids``, EOS included."""
    return [step.token for step in trace(model, prompt_ids, **settings)]


def trace(model: Any, prompt_ids: list[int], **settings: Any) -> list[Step]:
    """The same with the margin of each token, to tell a near-tie from a bug."""
    wanted = Settings(**settings)
    device = next(model.parameters()).device
    chain = processors_of(wanted, len(prompt_ids))
    steps: list[Step] = []
    ids = list(prompt_ids)
    while len(steps) < wanted.max_new_tokens:
        text = torch.tensor([ids], device=device)
        with torch.inference_mode():
            logits = model(input_ids=text, use_cache=False).logits[:, -1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        best = chain(text, logits)[0].double().topk(2)
        steps.append(Step(int(best.indices[0]), float(best.values[0] - best.values[1])))
        ids.append(steps[-1].token)
        if steps[-1].token in wanted.eos_ids:
            break
    return steps


def processors_of(wanted: Settings, prompt_length: int) -> LogitsProcessorList:
    """Everything between the model's logits and the argmax, in order."""
    chain = LogitsProcessorList()
    if wanted.logit_bias:
        biases = {(token,): float(value) for token, value in wanted.logit_bias.items()}
        chain.append(SequenceBiasLogitsProcessor(biases))
    if wanted.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(wanted.repetition_penalty)))
    if wanted.presence_penalty or wanted.frequency_penalty:
        chain.append(CountPenalty(prompt_length, wanted.presence_penalty, wanted.frequency_penalty))
    if wanted.min_new_tokens and wanted.eos_ids:
        chain.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_length, wanted.min_new_tokens, list(wanted.eos_ids)
            )
        )
    chain.extend(wanted.processors)
    if wanted.temperature:
        chain.append(TemperatureLogitsWarper(float(wanted.temperature)))
        if wanted.top_k:
            chain.append(TopKLogitsWarper(wanted.top_k))
        if wanted.top_p < 1:
            chain.append(TopPLogitsWarper(wanted.top_p))
        if wanted.min_p:
            chain.append(MinPLogitsWarper(wanted.min_p))
        chain.append(KeyedGumbel(wanted.seed, wanted.choice_index))
    return chain


class CountPenalty:
    """Presence and frequency penalty of the OpenAI API: over generated tokens only."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, text in enumerate(ids.tolist()):
            generated = text[self.prompt_length :]
            for token in set(generated):
                scores[row, token] -= self.presence
                scores[row, token] -= self.frequency * generated.count(token)
        return scores


class KeyedGumbel:
    """Adds the noise of the position that is being filled."""

    def __init__(self, seed: int, choice_index: int = 0) -> None:
        self.seed, self.choice_index = seed, choice_index

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        noise = gumbel_noise(self.seed, self.choice_index, ids.shape[1], scores.shape[1])
        return scores.double() + torch.tensor(noise, dtype=torch.float64, device=scores.device)


def gumbel_noise(seed: int, choice_index: int, position: int, vocab_size: int) -> list[float]:
    """Standard Gumbel noise for every token that may be chosen at ``position``."""
    words = (noise_word(seed, choice_index, position, token) for token in range(vocab_size))
    return [-math.log(-math.log(((word >> 12) + 0.5) / 2.0**52)) for word in words]


def noise_word(seed: int, choice_index: int, position: int, token: int) -> int:
    """64 random bits: SplitMix64 restarted from its own output at every coordinate."""
    start = splitmix64(seed, 0)
    for coordinate in (choice_index, position, token):
        start = splitmix64(start, coordinate)
    return start


def splitmix64(start: int, index: int) -> int:
    """Output number ``index`` of the SplitMix64 stream with state ``start``."""
    word = (start + (index + 1) * 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)
