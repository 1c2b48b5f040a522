"""Masks, losses and noise against formulas written out longhand."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.experts import Experts, HeadOutput
from jakiro.drafters.nn import DraftHead
from jakiro.target.target import Target
from jakiro.train import frozen
from jakiro.train.config import LossOptions, TrainConfig
from jakiro.train.evaluate import chain_levels, count_levels
from jakiro.train.feature_head import head_config
from jakiro.train.features import add_noise, teach
from jakiro.train.learner import chain_tau
from jakiro.train.losses import Kernel, Losses, measure, score
from jakiro.train.rollout import rollout
from jakiro.train.samples import Batch, Samples

# The compiler imports what torch itself has deprecated.
_TOLERANT = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=["plain", pytest.param("compiled", marks=_TOLERANT)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """As in tests/engine/test_compile.py: ``make compiled`` goes through the compiler of torch."""
    if request.param == "plain":
        return score
    backend = os.environ.get("JAKIRO_COMPILE_BACKEND", "eager")
    return torch.compile(score, backend=backend, dynamic=True)


def one_batch(marks: list[bool]) -> Batch:
    ids = torch.arange(3, 3 + len(marks))[None]
    return Batch(ids, torch.tensor([len(marks)]), torch.tensor([marks]), torch.tensor([0]))


def longhand(target: Target, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Feature and token loss of one position, from the formulas."""
    distance = (predicted - truth).abs()
    feature = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).mean()
    teacher = target.lm_head(truth).softmax(-1)
    token = -(teacher * target.lm_head(predicted).log_softmax(-1)).sum()
    return feature, token


def test_the_mask_goes_by_the_predicted_token(target: Target) -> None:
    # Of five tokens, 2 and 4 are the assistant's. The features that decide them are 1 and 3.
    # Branch 1 of pair i predicts feature i + 1: pairs 0 and 2 count. Branch 2 predicts feature
    # i + 2: only pair 1 counts, for no pair lies two before feature 1.
    lesson = teach(target, one_batch([False, False, True, False, True]))
    assert lesson.wanted.tolist() == [[False, True, False, True, False]]
    torch.manual_seed(0)
    next_, after = torch.randn(2, 1, 4, 32).unbind()
    result = measure([HeadOutput(next_, (after,))], lesson, target)
    truth = lesson.features[0]
    first = [longhand(target, next_[0, i], truth[i + 1]) for i in (0, 2)]
    second = longhand(target, after[0, 1], truth[3])
    torch.testing.assert_close(result.feature[0, 0], (first[0][0] + first[1][0]) / 2)
    torch.testing.assert_close(result.token[0, 0], (first[0][1] + first[1][1]) / 2)
    torch.testing.assert_close(result.feature[0, 1], second[0])
    torch.testing.assert_close(result.token[0, 1], second[1])
    assert result.valid[0, :, 0].tolist() == [
        [False, True, False, True, False],
        [False, False, False, True, False],
    ]
    options = LossOptions(feature_weight=1.0, token_weight=0.1, second_branch=0.5)
    total = result.feature[0] @ torch.tensor([1.0, 0.5]) + result.token[0] @ torch.tensor(
        [0.1, 0.05]
    )
    torch.testing.assert_close(result.total(options), total)


def test_later_passes_leave_out_pairs_without_a_chain(target: Target) -> None:
    lesson = teach(target, one_batch([True] * 6))
    output = HeadOutput(torch.zeros(1, 5, 32), (torch.zeros(1, 5, 32),))
    result = measure([output, output], lesson, target)
    counted = [[valid[0].nonzero()[:, 0].tolist() for valid in each] for each in result.valid]
    assert counted == [[[1, 2, 3, 4], [2, 3, 4]], [[2, 3, 4], [3, 4]]]


@pytest.mark.parametrize("budget", [40, 1 << 20])
def test_gradients_are_those_of_the_plain_formula(
    target: Target, budget: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(frozen.CHUNK_ELEMENTS, "cpu", budget)
    lesson = teach(target, one_batch([False, True, True, True, True, False, True]))
    torch.manual_seed(0)
    next_, after = (torch.randn(1, 6, 32, requires_grad=True) for _ in range(2))
    options = LossOptions(token_weight=0.7)
    output = HeadOutput(next_, (after,))
    measure([output], lesson, target, kernel=kernel).total(options).backward()
    places = lesson.wanted[0].nonzero()[:, 0]
    expected = torch.zeros(())
    for branch, weight, ahead in ((next_, 1.0, 1), (after, 0.5, 2)):
        own = places[places >= ahead]
        predicted, truth = branch[0, own - ahead], lesson.features[0, own]
        teacher = target.lm_head(truth).softmax(-1).detach()
        token = F.cross_entropy(target.lm_head(predicted), teacher)
        expected = expected + weight * (F.smooth_l1_loss(predicted, truth) + 0.7 * token)
    for actual, wanted in zip(
        (next_.grad, after.grad), torch.autograd.grad(expected, (next_, after)), strict=True
    ):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("share", ["gate", "responsibility", "best"])
def test_decoupled_experts_are_judged_by_their_mixture(
    target: Target, share: Any, kernel: Kernel
) -> None:
    lesson = teach(target, one_batch([False, True, True, True, True, False, True]))
    torch.manual_seed(0)
    features = torch.randn(1, 6, 2, 32, requires_grad=True)
    gates = torch.randn(1, 6, 2, requires_grad=True)
    after = torch.randn(1, 6, 32, requires_grad=True)
    given = (features, gates, after)
    experts = Experts(features, gates.softmax(-1))
    output = HeadOutput(torch.zeros(1, 6, 32), (after,), experts, gates)
    options = LossOptions(token_weight=0.7, second_branch=0.3)
    found = measure([output], lesson, target, share, kernel)
    actual = torch.autograd.grad(found.total(options), given)

    places = lesson.wanted[0].nonzero()[:, 0]
    truth = lesson.features[0, places]
    teacher = target.lm_head(truth).softmax(-1).detach()
    own, weights = features[0, places - 1], gates.softmax(-1)[0, places - 1]
    laws = target.lm_head(own).softmax(-1)
    joint = weights[..., None] * laws
    mixture = joint.sum(1)
    explained = (teacher[:, None] * joint / mixture[:, None]).sum(-1).detach()
    best = F.one_hot(explained.argmax(-1), 2).float()
    parts = {"gate": weights.detach(), "responsibility": explained, "best": best}[share]
    apart = F.smooth_l1_loss(own, truth[:, None].expand_as(own), reduction="none").mean(-1)
    expected = (parts * apart).sum(-1).mean() - 0.7 * (teacher * mixture.log()).sum(-1).mean()
    later = places[places >= 2]
    token = F.cross_entropy(
        target.lm_head(after[0, later - 2]),
        target.lm_head(lesson.features[0, later]).softmax(-1).detach(),
    )
    distance = F.smooth_l1_loss(after[0, later - 2], lesson.features[0, later])
    expected = expected + 0.3 * (distance + 0.7 * token)
    torch.testing.assert_close(found.total(options), expected)
    for mine, plain in zip(actual, torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-3)
    ranks = (mixture > mixture.gather(-1, teacher.argmax(-1, keepdim=True))).sum(-1)
    assert found.ranks[0, 0, 0, places].tolist() == ranks.tolist()


def test_hits_compare_with_the_first_choice_of_the_target(target: Target) -> None:
    lesson = teach(target, one_batch([True] * 5))
    right = lesson.features[:, 1:].clone()
    right[0, 2] = -right[0, 2]
    result = measure([HeadOutput(right)], lesson, target)
    assert result.hits[0, 0, 0].tolist() == [False, True, True, False, False]
    assert result.valid[0, 0, 0].tolist() == [False, True, True, True, False]


def test_a_batch_without_a_wanted_token_has_no_loss(target: Target) -> None:
    lesson = teach(target, one_batch([True, True, False, False]))
    output = HeadOutput(torch.ones(1, 3, 32, requires_grad=True))
    total = measure([output], lesson, target).total(LossOptions())
    total.backward()
    assert total.item() == 0


def test_gradients_reach_the_head_alone(target: Target, samples: Samples) -> None:
    config = TrainConfig(unroll=2)
    head = DraftHead(head_config(target, config))
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    lesson = teach(target, samples.batch([0, 1, 2]), 0.2)
    assert not lesson.embeddings.requires_grad
    outputs = rollout(head, lesson.embeddings, lesson.inputs, config.unroll, 1)
    measure(outputs, lesson, target).total(config.loss).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in target.model.parameters())
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_noise_is_uniform_and_shrinks_with_the_length_of_each_row() -> None:
    features = torch.full((2, 400, 64), 3.0)
    lengths = torch.tensor([1024, 400])
    batch = Batch(torch.zeros(2, 401), lengths, torch.zeros(2, 401), torch.tensor([5, 9]))
    noisy = add_noise(features, batch, 0.2, seed=0) - features
    for row, length in zip(noisy, lengths.tolist(), strict=True):
        width = 0.2 * 512 / length
        assert row.min() >= -width / 2 - 1e-6
        assert row.max() <= width / 2 + 1e-6
        assert row.std().item() == pytest.approx(width / 12**0.5, rel=0.02)
        assert row.mean().item() == pytest.approx(0, abs=0.01 * width)
    assert not torch.allclose(noisy[0] * 2.56, noisy[1])
    alone = Batch(batch.ids[1:], lengths[1:], batch.carries_loss[1:], batch.indices[1:])
    again = add_noise(features[1:], alone, 0.2, seed=0) - features[1:]
    assert torch.equal(noisy[1:], again)
    assert not torch.equal(again, add_noise(features[1:], alone, 0.2, seed=1) - features[1:])


def test_noise_falls_on_inputs_and_never_on_what_is_predicted(
    target: Target, samples: Samples
) -> None:
    batch = samples.batch([0, 1])
    clean = teach(target, batch)
    noisy = teach(target, batch, 0.2, seed=0)
    assert torch.equal(clean.features, noisy.features)
    assert torch.equal(clean.inputs, clean.features[:, :-1])
    changed = (noisy.inputs != clean.inputs).float().mean(-1)
    assert batch.lengths.tolist() == [16, 11]
    assert changed[0].min() > 0.9 and changed[1, :11].min() > 0.9
    assert changed[1, 11:].max() == 0


def test_chains_are_judged_along_the_diagonal() -> None:
    # Pass 0 is right at features 1, 2, 4; pass 1 at 3; the last level (branch 2) at 4.
    hits = torch.zeros(2, 2, 1, 6, dtype=torch.bool)
    valid = torch.zeros_like(hits)
    for place in (1, 2, 4):
        hits[0, 0, 0, place] = True
    hits[1, 0, 0, 3] = hits[1, 1, 0, 4] = True
    for number in range(2):
        for branch in range(2):
            valid[number, branch, 0, 1 + number + branch :] = True
    levels = count_levels(Losses(*torch.empty(2, 2, 2), (~hits).int(), valid, *torch.zeros(2)))
    # Roots 1, 2, 4 pass the first of five; of these, pass 1 judges 2, 3, 5 and passes 3 (root 2);
    # branch 2 judges 4 and passes it.
    assert levels.tolist() == [[3, 1, 1], [5, 3, 1]]
    assert chain_tau(levels) == pytest.approx(1 + 3 / 5 + 1 / 5 + 1 / 5)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_chains_longer_than_a_batch_are_those_of_a_padded_one(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    judged = torch.rand(6, 4, width, generator=generator) < 0.9
    hits = judged & (torch.rand(judged.shape, generator=generator) < 0.8)
    wide = [F.pad(each, (0, 8)) for each in (hits, judged)]
    assert torch.equal(chain_levels([*hits], [*judged]), chain_levels(*map(list, wide)))
