"""The noise: its contract (golden values), its law, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jakiro.sampling.noise import NOISE_VERSION, gumbel, noise_bits, noise_keys
from tests.oracles.plain import gumbel_noise, noise_word

GOLDEN = [
    ((0, 0, 0, 0), 0x2130748AAAC80268, -0.7143951177675683),
    ((0, 0, 1, 0), 0x97693BFC00425025, 0.6440161632198722),
    ((1, 0, 0, 0), 0xE28195DDD9EE4956, 2.100418772361179),
    ((0, 1, 0, 0), 0x68AC638DA2EDDA0C, 0.11167767716810073),
    ((42, 0, 17, 31999), 0x88881F3DE9608F48, 0.4642276595489467),
    ((2**63 - 1, 7, 131071, 151935), 0xC913F8F931E0239B, 1.4209501410559247),
]


def key(seed: int, choice_index: int, position: int) -> Tensor:
    return noise_keys(*(torch.tensor(value) for value in (seed, choice_index, position)))


def block(seeds: int, positions: int, vocab_size: int) -> Tensor:
    """Noise [seeds, positions, V]."""
    keys = noise_keys(
        torch.arange(seeds)[:, None], torch.tensor(0), torch.arange(positions)[None, :]
    )
    return gumbel(keys, vocab_size)


@pytest.mark.parametrize(("where", "word", "value"), GOLDEN)
def test_golden_values(where: tuple[int, int, int, int], word: int, value: float) -> None:
    assert NOISE_VERSION == 1, "new noise needs new golden values"
    token = torch.tensor([where[3]])
    assert int(noise_bits(key(*where[:3]), token)) % 2**64 == word == noise_word(*where)
    assert float(gumbel(key(*where[:3]), token)) == pytest.approx(value, rel=1e-13)


def test_equals_the_oracle_over_a_vocabulary() -> None:
    ours = gumbel(key(123456789, 3, 1000), 500)
    theirs = torch.tensor(gumbel_noise(123456789, 3, 1000, 500), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_extreme_bits_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    monkeypatch.setattr("jakiro.sampling.noise.noise_bits", lambda keys, tokens: extremes)
    noise = gumbel(torch.tensor(0), 4)
    low, high = -math.log(53 * math.log(2)), 53 * math.log(2)
    expected = torch.tensor([low, high, -math.log(math.log(2)), -math.log(math.log(2))])
    torch.testing.assert_close(noise, expected.double(), rtol=1e-6, atol=1e-6)


def test_follows_the_gumbel_law() -> None:
    for noise in (block(1, 1, 100_000), block(1, 100_000, 1), block(100_000, 1, 1)):
        uniform = (-(-noise.flatten()).exp()).exp().sort().values
        ranks = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
        distance = torch.maximum(ranks - uniform, uniform - ranks + 1e-5).max()
        assert distance < 1.63 / math.sqrt(100_000)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("lag", [1, 2, 8])
def test_neighbours_are_uncorrelated(axis: int, lag: int) -> None:
    uniform = (-(-block(40, 40, 40)).exp()).exp() - 0.5
    size = 40 - lag
    left, right = uniform.narrow(axis, 0, size), uniform.narrow(axis, lag, size)
    correlation = float((left * right).mean()) * 12
    assert abs(correlation) < 4 / math.sqrt(left.numel())


def test_choice_indices_are_other_requests() -> None:
    one, two = gumbel(key(5, 0, 9), 1000), gumbel(key(5, 1, 9), 1000)
    assert not torch.isclose(one, two).any()


def test_depends_on_coordinates_only() -> None:
    """A token, a row, a position evaluated alone is the one evaluated among others."""
    whole = block(3, 5, 70)
    tokens = torch.tensor([[69, 0, 13], [7, 7, 64]])
    keys = noise_keys(torch.tensor([2, 0]), torch.tensor(0), torch.tensor([4, 1]))
    part = gumbel(keys, tokens)
    assert torch.equal(part[0], whole[2, 4, tokens[0]])
    assert torch.equal(part[1], whole[0, 1, tokens[1]])
    bits = noise_bits(keys[:, None], torch.arange(70).expand(2, 1, 70))
    strided = noise_bits(keys.repeat(3)[2:4], torch.arange(140).view(70, 2).T[:, ::2])
    assert torch.equal(bits[0, 0, 0:70:4], strided[0][:18])
