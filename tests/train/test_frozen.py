"""Logits of the whole vocabulary are there for a few rows at a time, and change nothing by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jakiro.drafters.experts import Experts, HeadOutput
from jakiro.target.target import Target
from jakiro.train.features import Lesson
from jakiro.train.frozen import CHUNK_ELEMENTS, in_parts, likeliest
from jakiro.train.rollout import best_explaining
from jakiro.train.sharpness import surprise

FEATURES = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(33).view(3, 11)


def chosen(target: Target) -> Tensor:
    return likeliest(target, FEATURES)


def explained(target: Target) -> Tensor:
    """By two experts, one of which adds to the feature of the other."""
    pair = torch.stack([FEATURES, FEATURES + FEATURES.flip(1)], 2)
    experts = Experts(pair, torch.full((3, 11, 2), 0.5))
    return best_explaining(target, TOKENS)(HeadOutput(FEATURES, (), experts))


def surprised(target: Target) -> Tensor:
    lesson = Lesson(*[torch.zeros(0)] * 3, FEATURES, torch.ones(3, 11, dtype=torch.bool))
    (tally,) = surprise(HeadOutput(FEATURES), lesson, target, range(3)).values()
    return tally


@pytest.mark.parametrize("work", [chosen, explained, surprised])
def test_few_rows_are_scored_at_once(
    work: Callable[[Target], Tensor], target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, score = [], target.lm_head

    def noted(features: Tensor) -> Tensor:
        logits = score(features)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(target, "lm_head", noted)
    whole = work(target)
    most, count = max(sizes), len(sizes)
    sizes.clear()
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 2 * target.vocab_size)
    assert torch.allclose(work(target), whole)
    assert max(sizes) <= 2 * target.vocab_size < most and len(sizes) > count


def test_parts_add_up_with_their_gradients() -> None:
    one, two = torch.randn(7, 3, requires_grad=True), torch.randn(7, 3)

    def measure(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return (first * second).exp(), first > second

    whole = measure(one, two)
    (wanted,) = torch.autograd.grad(whole[0].square().sum(), one)
    for size in (1, 3, 7, 9):
        found = in_parts(measure, size, one, two)
        assert all(torch.equal(*pair) for pair in zip(found, whole, strict=True))
        assert torch.allclose(torch.autograd.grad(found[0].square().sum(), one)[0], wanted)
    assert [len(each) for each in in_parts(measure, 3, one[:0], two[:0])] == [0, 0]
