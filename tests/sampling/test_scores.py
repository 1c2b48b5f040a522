"""What drafters see of the noise, and that choices follow the processed law."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jakiro.sampling.draws import BestAndOne, WithoutReplacement, WithReplacement
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import Sampler
from jakiro.tree.grow import Nodes
from jakiro.tree.token_tree import TokenTree
from tests.oracles.plain import gumbel_noise

VOCAB = 150
PROMPT = [4, 9, 2]
CASES: dict[str, dict[str, Any]] = {
    "free": {"temperature": 1.3},
    "cold": {"temperature": 0.4, "logit_bias": {3: 2.0}},
    "top-k": {"temperature": 1.3, "top_k": 5},
    "top-p": {"temperature": 3.0, "top_p": 0.9},
    "min-p": {"temperature": 0.8, "min_p": 0.1},
    "min-new": {"temperature": 1.3, "min_new_tokens": 3, "logit_bias": {7: 9.0}},
    "greedy": {},
    "greedy-bias": {"logit_bias": {3: 4.0}},
}


def sampler_of(cases: list[dict[str, Any]]) -> Sampler:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for row, case in enumerate(cases):
        sampler.admit(SamplingParams(**case), PROMPT, seed=row, eos_ids=(7,))
        sampler.extend(row, [5] * row)
    return sampler


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_perfect_drafter_ranks_the_choice_first(depth: int) -> None:
    """Off by one position, or filtered otherwise than the target, this fails at once."""
    cases = list(CASES.values())
    chain = TokenTree(
        torch.full((len(cases), depth), 5),
        torch.arange(-1, depth - 1).expand(len(cases), depth),
        torch.ones(len(cases), depth, dtype=torch.bool),
    )
    logits = torch.randn(len(cases), depth, VOCAB, dtype=torch.float64) * 3
    sampler = sampler_of(cases)
    scores = sampler.scores(logits[:, -1:], depth)
    assert scores.dtype == torch.float32
    choice = sampler.view(chain, logits).choice[:, -1]
    assert torch.equal(scores[:, 0].argmax(-1), choice)


@pytest.mark.parametrize("sharpness", [AS_SAID, Sharpness(1.7, 1.7), Sharpness(1.4, 1.1)])
def test_scores_are_the_formula(sharpness: Sharpness) -> None:
    logits = torch.randn(2, 3, VOCAB, dtype=torch.float64) * 3
    sampler = sampler_of([{"temperature": 0.7, "top_k": 70}, {"temperature": 0.7}])
    scores = sampler.scores(logits, 3, sharpness=sharpness)
    for row, top_k in enumerate([70, VOCAB]):
        position = len(PROMPT) + row + 2
        noise = torch.tensor(gumbel_noise(row, 0, position, VOCAB), dtype=torch.float64)
        noisy = sharpness.logits * logits[row] + sharpness.noise * 0.7 * noise
        smallest = logits[row].topk(top_k).values[:, -1:]
        expected = noisy.masked_fill(logits[row] < smallest, -torch.inf).log_softmax(-1)
        torch.testing.assert_close(scores[row], expected.float())
        assert scores[row].isfinite().sum(-1).tolist() == [top_k] * 3


def test_scores_of_some_tokens_are_those_where_no_other_is_likely() -> None:
    """Noise, biases, bans and filters go by the token, not by its place among those scored."""
    ids = torch.randperm(VOCAB)[:90].sort().values
    cases = [*CASES.values(), {"temperature": 3.0, "top_k": 120, "top_p": 0.8}]
    cases[5] = {**cases[5], "logit_bias": {int(ids[3]): 9.0}}
    sampler = sampler_of(cases)
    few = torch.randn(len(cases), 3, len(ids), dtype=torch.float64) * 3
    wide = few.new_full((len(cases), 3, VOCAB), -torch.inf).index_copy_(-1, ids, few)
    scores = sampler.scores(few, 3, ids)
    torch.testing.assert_close(scores, sampler.scores(wide, 3)[..., ids])
    nothing = torch.zeros(len(cases), 3)
    for way in (WithoutReplacement, WithReplacement, BestAndOne):
        drawn, among_all = sampler.sampled_drafts(way), sampler.sampled_drafts(way)
        laws = drawn.scores(few, 2, ids), among_all.scores(wide, 2)
        torch.testing.assert_close(laws[0], laws[1][..., ids])
        (local, made), (tokens, made_of_all) = (
            draws.choose(law, Nodes(nothing, nothing), [1, 2, 4], 2)
            for draws, law in zip((drawn, among_all), laws, strict=True)
        )
        torch.testing.assert_close(made.values[:, 2], made_of_all.values[:, 2])
        assert ((ids[local] == tokens) | made.scores.isneginf())[:, 2].all()
        torch.testing.assert_close(drawn._laws[2], among_all._laws[2])


def test_scores_of_greedy_rows_have_no_noise() -> None:
    logits = torch.randn(2, 3, VOCAB)
    scores = sampler_of([{}, {"temperature": 1.0}]).scores(logits, 1)
    assert torch.equal(scores[0], logits[0].log_softmax(-1))
    assert not torch.allclose(scores[1], logits[1].log_softmax(-1))


def test_looking_at_the_noise_changes_nothing() -> None:
    """The noise a drafter has looked at is kept for the target, until the text moves on."""
    logits = torch.randn(2, 1, VOCAB) * 3
    roots = TokenTree.root_only(torch.tensor([5, 5]))
    cases = [{"temperature": 1.3}, {"temperature": 1.0}]
    curious = sampler_of(cases)
    for step in range(3):
        blind = sampler_of(cases)
        blind.extend(0, [5, 6] * step)
        blind.extend(1, [6] * step)
        deep, shallow = (curious.scores(logits, depth) for depth in (3, 1))
        assert not torch.equal(deep, shallow)
        assert torch.equal(curious.view(roots, logits).choice, blind.view(roots, logits).choice)
        curious.extend(0, [5, 6])
        curious.extend(1, [6])


@pytest.mark.parametrize("name", ["free", "top-k", "top-p", "min-p"])
def test_choices_follow_the_processed_law(name: str) -> None:
    """Chi-square over positions and requests, same logits everywhere."""
    num_rows, num_positions = 200, 25
    sampler = Sampler(12, torch.device("cpu"))
    for seed in range(num_rows):
        params = SamplingParams(**CASES[name])
        sampler.admit(params, PROMPT, seed=seed // 2, eos_ids=(), choice_index=seed % 2)
    logits = (torch.randn(12) * 2).expand(num_rows, 1, 12)
    roots = TokenTree.root_only(torch.full((num_rows,), 5))
    counts = torch.zeros(12, dtype=torch.float64)
    for _ in range(num_positions):
        view = sampler.view(roots, logits)
        counts += view.choice.flatten().bincount(minlength=12)
        for row in range(num_rows):
            sampler.extend(row, [5])
    probs = view.probs[0, 0].double()
    assert counts[probs == 0].sum() == 0
    support = probs > 0
    assert support.sum() >= 2
    expected = probs[support] * num_rows * num_positions
    chi_square = ((counts[support] - expected) ** 2 / expected).sum()
    assert chi_square < 31.3  # 0.1 % at 11 degrees of freedom
