"""Oracles of redefined targets: the formulas of the papers, token by token, from whole forwards of
whole texts. Each stands for a model in ``plain.trace``; nothing of the package is used here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Numbers = list[float]


@dataclass(frozen=True)
class Redefined:
    """A model whose logits after a text are ``law`` of it."""

    model: Any
    law: Callable[[Tensor], Numbers]

    def parameters(self) -> Iterator[nn.Parameter]:
        parameters: Iterator[nn.Parameter] = self.model.parameters()
        return parameters

    def __call__(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        law = self.law(input_ids)
        return SimpleNamespace(logits=torch.tensor([[law]], dtype=torch.float64))


def contrastive(expert: Any, amateur: Any, alpha: float, beta: float) -> Redefined:
    def law(ids: Tensor) -> Numbers:
        strong, weak = said(expert, ids), said(amateur, ids)
        likely = head(softmax(strong[: len(weak)]), alpha)
        return [
            (1 + beta) * s - beta * weak[token] if token in likely else -INF
            for token, s in enumerate(strong)
        ]

    return Redefined(expert, law)


def dola(model: Any, layers: Sequence[int], alpha: float) -> Redefined:
    def law(ids: Tensor) -> Numbers:
        final = logs(said(model, ids))
        early = [logs(said(model, ids, layer)) for layer in layers]
        distances = [jensen_shannon(final, law) for law in early]
        chosen = early[distances.index(max(distances))]
        likely = head([math.exp(f) for f in final], alpha)
        return [
            f - e if token in likely else -INF
            for token, (f, e) in enumerate(zip(final, chosen, strict=True))
        ]

    return Redefined(model, law)


def lower_layers(
    expert: Any,
    amateur: Any,
    layers: tuple[int, int],
    weights: tuple[float, float, float, float],
    instruction: list[int],
) -> Redefined:
    alpha, beta, share, truth = weights

    def law(ids: Tensor) -> Numbers:
        last = [logs(said(model, ids)) for model in (expert, amateur)]
        low = [logs(said(m, ids, n)) for m, n in zip((expert, amateur), layers, strict=True)]
        told = logs(said(expert, torch.tensor([[*instruction, *ids[0].tolist()]])))
        likely = head(softmax(said(expert, ids)), alpha)
        return [
            (1 - share) * ((1 + beta) * last[0][v] - beta * last[1][v])
            + share * ((1 + beta) * low[0][v] - beta * low[1][v])
            + truth * (told[v] - last[0][v])
            if v in likely
            else -INF
            for v in range(len(told))
        ]

    return Redefined(expert, law)


def by_turns(large: Any, small: Any, threshold: float, window: int, stay: int) -> Redefined:
    """For one text that grows token by token, its prompt first."""
    seen: list[float] = []
    is_large, since = threshold < 0, 0

    def law(ids: Tensor) -> Numbers:
        nonlocal is_large, since
        logits = said(large if is_large else small, ids)
        seen.append(-sum(p * math.log2(p) for p in softmax(logits) if p > 0))
        last, since = seen[-window:], since + 1
        wants_large = sum(last) / len(last) > threshold
        if wants_large != is_large and since >= stay:
            is_large, since = wants_large, 0
        shared = min(model.config.vocab_size for model in (large, small))
        return [z if token < shared else -INF for token, z in enumerate(logits)] + [-INF] * (
            large.config.vocab_size - len(logits)
        )

    return Redefined(large, law)


INF = math.inf


def said(model: Any, ids: Tensor, layer: int | None = None) -> Numbers:
    """Logits after the text: the model's, or its head's on the stream that enters a block."""
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=False, output_hidden_states=layer is not None)
        if layer is None:
            logits: Numbers = out.logits[0, -1].tolist()
        else:
            logits = model.lm_head(out.hidden_states[layer][0, -1]).tolist()
    return logits


def softmax(logits: Numbers) -> Numbers:
    return [math.exp(z) for z in logs(logits)]


def logs(logits: Numbers) -> Numbers:
    best = max(logits)
    total = math.log(sum(math.exp(z - best) for z in logits))
    return [z - best - total for z in logits]


def head(law: Numbers, alpha: float) -> set[int]:
    """The tokens at least ``alpha`` times as probable as the best."""
    return {token for token, p in enumerate(law) if p >= alpha * max(law)}


def jensen_shannon(one: Numbers, other: Numbers) -> float:
    """Of laws given by their logarithms."""
    middle = [
        max(a, b) + math.log((1 + math.exp(-abs(a - b))) / 2)
        for a, b in zip(one, other, strict=True)
    ]
    return (divergence(one, middle) + divergence(other, middle)) / 2


def divergence(one: Numbers, other: Numbers) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(one, other, strict=True))
