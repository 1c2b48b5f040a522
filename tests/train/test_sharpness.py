"""The sharpness that is measured is that of the errors that were made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.drafters.experts import Experts, HeadOutput
from jakiro.train.features import Lesson
from jakiro.train.learner import readings
from jakiro.train.sharpness import fitted, surprise

VOCABULARY, ROWS, PLACES = 30, 4, 8_000
TARGET: Any = SimpleNamespace(lm_head=lambda features: features)
"""Its features are its logits."""


def gumbel(*shape: int) -> Tensor:
    return -torch.empty(*shape).exponential_().log()


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 0.8)])
def test_errors_of_gumbel_noise_are_found(scales: tuple[float, float]) -> None:
    """Draft logits that lack Gumbel noise of a scale are that much surer: the inverse scale."""
    torch.manual_seed(0)
    drafts = 3 * torch.randn(2, ROWS, PLACES, VOCABULARY)
    wanted = torch.ones(ROWS, PLACES, dtype=torch.bool)
    wanted[:, 0] = False
    found = []
    for branch, scale in enumerate(scales):
        # Pair i predicts feature i + 1 + branch.
        truth = drafts[branch] + scale * gumbel(ROWS, PLACES, VOCABULARY)
        lesson = Lesson(*[torch.zeros(0)] * 3, truth.roll(1 + branch, 1), wanted)
        tally = surprise(HeadOutput(drafts[0], (drafts[1],)), lesson, TARGET, range(ROWS))
        found.append(fitted(readings(tally), 2)[branch])
    assert found == pytest.approx([1 / scale for scale in scales], abs=0.11)


def test_experts_are_measured_by_their_mixture() -> None:
    torch.manual_seed(0)
    laws = torch.randn(1, 40, 2, VOCABULARY).log_softmax(-1)
    weights = torch.rand(1, 40, 2).softmax(-1)
    mixture = (weights[..., None] * laws.exp()).sum(-2).log()
    lesson = Lesson(*[torch.zeros(0)] * 3, mixture.roll(1, 1), torch.ones(1, 40, dtype=torch.bool))
    alone = surprise(HeadOutput(mixture), lesson, TARGET, [7])
    parts = surprise(HeadOutput(mixture, experts=Experts(laws, weights)), lesson, TARGET, [7])
    torch.testing.assert_close(alone["surprise_1"], parts["surprise_1"])


def test_a_branch_is_asked_where_a_pair_is_before() -> None:
    """Pair i of branch c predicts feature i + c, so feature 1 is not asked of the second branch."""
    torch.manual_seed(0)
    truth, wanted = torch.randn(1, 6, VOCABULARY), torch.zeros(1, 6, dtype=torch.bool)
    wanted[0, 1] = True
    lesson = Lesson(*[torch.zeros(0)] * 3, truth, wanted)
    output = HeadOutput(truth[:, 1:], (torch.randn(1, 5, VOCABULARY),))
    tally = surprise(output, lesson, TARGET, [0])
    assert tally["surprise_1"][1].unique().tolist() == [1]
    assert not tally["surprise_2"].any()


def test_nothing_to_ask_is_no_error() -> None:
    lesson = Lesson(*[torch.zeros(0)] * 3, torch.zeros(1, 5, 9), torch.zeros(1, 5).bool())
    tally = surprise(HeadOutput(torch.zeros(1, 4, 9)), lesson, TARGET, [0])
    assert fitted(readings(tally), 1) == [1.0]
