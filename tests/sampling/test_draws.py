"""The streams beside the choices: their keys, the law of what is drawn, and its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch

from jakiro.errors import ConfigError
from jakiro.sampling.draws import (
    BestAndOne,
    DraftDraws,
    RuleDraws,
    WithoutReplacement,
    WithReplacement,
)
from jakiro.sampling.noise import (
    Purpose,
    gumbel,
    noise_bits,
    position_keys,
    purpose_keys,
    request_keys,
)
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import Sampler
from jakiro.tree.grow import Frontier, Nodes, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.oracles.plain import splitmix64
from tests.oracles.rules import Pick, first_paths, law

VOCAB = 6
PLAN = TreePlan.static(((0,), (1,), (0, 0), (0, 1), (1, 0)))
ROWS = 50
LOGITS = torch.tensor([[1.0, 0.2, -0.5, 0.7, -1.5, 0.0]], dtype=torch.float64)


LAW = (LOGITS[0] / 0.7).masked_fill(torch.arange(VOCAB) == 4, -torch.inf).softmax(-1).tolist()
"""At temperature 0.7 and top-k 5."""


def sampler_of(*cases: dict[str, Any]) -> Sampler:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for seed, case in enumerate(cases):
        sampler.admit(SamplingParams(**case), [4, 2], seed=seed, eos_ids=())
    return sampler


def draft(
    sampler: Sampler,
    rows: int,
    plan: TreePlan = PLAN,
    caps: list[int] | None = None,
    way: type[DraftDraws] = WithoutReplacement,
) -> TokenTree:
    """A tree whose nodes all have the law of ``LOGITS``."""
    draws = sampler.sampled_drafts(way)
    roots = torch.zeros(rows, dtype=torch.int64)

    def scores(width: int, depth: int) -> torch.Tensor:
        return draws.scores(LOGITS.expand(rows, width, -1), depth)

    def expand(frontier: Frontier) -> torch.Tensor:
        return scores(frontier.tokens.shape[1], frontier.depth + 1)

    tree = grow(plan, roots, scores(1, 1)[:, 0], expand, caps or [plan.depth] * rows, draws.choose)
    return draws.seal(tree)


def cycles(sampler: Sampler, count: int) -> Iterator[None]:
    """The text of every row grows by one token after each."""
    for _ in range(count):
        yield
        for row in range(ROWS):
            sampler.extend(row, [0])


@pytest.mark.parametrize(
    ("purpose", "golden"),
    [(Purpose.DRAFT, 0x028B0E29514A361F), (Purpose.ACCEPT, 0x1C2E3E8F11E6C289)],
)
def test_streams_are_part_of_the_contract(purpose: Purpose, golden: int) -> None:
    """Changing them needs a new version of the noise; the oracle counts in Python integers."""
    request = splitmix64(splitmix64(42, 0), 1)
    keys = purpose_keys(request_keys(torch.tensor([42]), torch.tensor([1])), purpose)
    word = int(noise_bits(position_keys(keys, torch.tensor([17])), torch.tensor([[5]]))) % 2**64
    assert word == splitmix64(splitmix64(splitmix64(request, -int(purpose)), 17), 5) == golden


def test_siblings_are_drawn_without_replacement() -> None:
    """Every ordered pair as often as two successive draws would give it, at both levels."""
    sampler = sampler_of(*[{"temperature": 0.7, "top_k": 5}] * ROWS)
    tokens = torch.cat([draft(sampler, ROWS).tokens for _ in cycles(sampler, 200)])
    law = LAW
    pairs = permutations(range(VOCAB), 2)
    expected = {(a, b): len(tokens) * law[a] * law[b] / (1 - law[a]) for a, b in pairs}
    for first in (1, 3):
        found = Counter(map(tuple, tokens[:, first : first + 2].tolist()))
        cells = [(found[pair], count) for pair, count in expected.items() if count > 0]
        assert sum(count for count, _ in cells) == len(tokens)
        # 19 degrees of freedom: one in 10 000 is above.
        assert sum((count - wanted) ** 2 / wanted for count, wanted in cells) < 50
    for one, other in ((1, 3), (3, 5)):  # two levels, two columns
        same = (tokens[:, one] == tokens[:, other]).double().mean()
        assert float(same) == pytest.approx(sum(p * p for p in law), abs=0.02)


def chi_square(found: Counter[Any], expected: dict[Any, float], total: int) -> float:
    """Rare outcomes together; ``expected`` sums to 1."""
    assert found.keys() <= expected.keys()
    cells = [(found[key], total * prob) for key, prob in expected.items() if total * prob >= 5]
    rest = (total - sum(hits for hits, _ in cells), total - sum(wanted for _, wanted in cells))
    cells += [rest] if rest[1] >= 5 else []
    return sum((hits - wanted) ** 2 / wanted for hits, wanted in cells)


def test_independent_siblings_may_be_twins() -> None:
    sampler = sampler_of(*[{"temperature": 0.7, "top_k": 5}] * ROWS)
    plan = TreePlan.branching((2, 1))
    drafts = [draft(sampler, ROWS, plan, way=WithReplacement) for _ in cycles(sampler, 80)]
    tokens = torch.cat([tree.tokens for tree in drafts])
    expected = {(a, b): LAW[a] * LAW[b] for a in range(VOCAB) for b in range(VOCAB) if a != 4 != b}
    for first in (1, 3):  # two draws below the root; one below each of them
        found = Counter(map(tuple, tokens[:, first : first + 2].tolist()))
        # 24 degrees of freedom: one in 10 000 is above.
        assert chi_square(found, expected, len(tokens)) < 59
    drafts[0].check(has_twins=True)


def test_the_last_of_the_siblings_is_drawn_from_the_rest() -> None:
    sampler = sampler_of(*[{"temperature": 0.7, "top_k": 5}] * ROWS, {"temperature": 0.0})
    plan = TreePlan.static(((0,), (1,), (2,), (0, 0), (2, 0), (2, 1)))
    drafts = [draft(sampler, ROWS + 1, plan, way=BestAndOne) for _ in cycles(sampler, 80)]
    tokens = torch.stack([tree.tokens for tree in drafts])
    assert tokens[:, -1].unique(dim=0).tolist() == [[0, 0, 3, 1, 0, 0, 3]], "a list when greedy"
    drawn, size = tokens[:, :-1].flatten(0, 1), 80 * ROWS
    assert (drawn[:, [1, 2, 5]] == torch.tensor([0, 3, 0])).all(), "the most probable"
    for node, listed in ((3, (0, 3)), (4, ()), (6, (0,))):
        mass = 1 - sum(LAW[token] for token in listed)
        rest = {x: p / mass for x, p in enumerate(LAW) if x not in listed and p > 0}
        assert chi_square(Counter(drawn[:, node].tolist()), rest, size) < 24


def test_beams_are_the_first_prefixes_of_paths_without_replacement() -> None:
    """The law of whole beams against its enumeration; parents and order included."""
    sampler = sampler_of(*[{"temperature": 0.7, "top_k": 3}] * ROWS)
    plan = TreePlan.beam(2, 2)
    drafts = [draft(sampler, ROWS, plan) for _ in cycles(sampler, 120)]
    found = Counter(
        (*tokens[1:], *parents[3:])
        for tree in drafts
        for tokens, parents in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)
    )
    mass = sum(sorted(LAW)[-3:])
    step = [p / mass if p in sorted(LAW)[-3:] else 0.0 for p in LAW]

    def beams(pick: Pick) -> tuple[int, ...]:
        first, second = first_paths(pick, lambda path: step, 2, 2)
        tokens = [path[-1] for path, _ in (*first, *second)]
        return (*tokens, *(1 + place for _, place in second))

    expected = law(beams)
    assert len(expected) == 90
    # At most 89 degrees of freedom: one in 10 000 is above.
    assert chi_square(found, expected, 120 * ROWS) < 145
    assert all(tree.laws is not None and tree.laws.shape[1] == 3 for tree in drafts)


def test_the_tree_carries_the_processed_laws() -> None:
    sampler = sampler_of(
        {"temperature": 0.7, "top_k": 5}, {}, {"temperature": 1.0, "logit_bias": {1: 2.0}}
    )
    tree = draft(sampler, 3, caps=[2, 1, 2])
    assert tree.laws is not None and tree.laws.shape == (3, 3, VOCAB)
    banned = (LOGITS[0] / 0.7).masked_fill(torch.arange(VOCAB) == 4, -torch.inf)
    shifted = LOGITS[0] + torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    for row, logits in enumerate((banned, LOGITS[0], shifted)):
        torch.testing.assert_close(tree.laws[row], logits.softmax(-1).expand(3, -1))
    assert tree.law_index[0, :3].tolist() == [0, 1, 2]
    assert tree.tokens[1, 1:3].tolist() == [0, 3], "a greedy row lists its best"
    assert tree.valid[1].tolist() == [True, True, True, False, False, False]


def test_a_law_with_few_tokens_proposes_no_more() -> None:
    tree = draft(sampler_of({"temperature": 1.0, "top_k": 1}), 1)
    assert tree.valid.tolist() == [[True, True, False, True, False, False]]
    assert tree.tokens[0, [1, 3]].tolist() == [0, 0]


def test_cycles_do_not_share_their_draws() -> None:
    sampler = sampler_of({"temperature": 1.0, "seed": 0})
    chain = TreePlan.chain(8)
    first = draft(sampler, 1, chain).tokens[0, 1:].tolist()
    assert draft(sampler, 1, chain).tokens[0, 1:].tolist() == first
    sampler.extend(0, [1])
    second = draft(sampler, 1, chain).tokens[0, 1:].tolist()
    assert second != first and second[:-1] != first[1:]


def test_coins_are_uniform_and_independent_of_the_noise() -> None:
    keys = request_keys(torch.arange(4000), torch.tensor(0))
    draws = RuleDraws(keys, torch.full_like(keys, 9))
    coins = draws.coins(5)
    assert coins.shape == (4000, 5) and float(coins.min()) > 0 and float(coins.max()) < 1
    assert float((coins < 0.25).double().mean()) == pytest.approx(0.25, abs=0.01)
    noise = gumbel(position_keys(draws.keys, draws.lengths), 5)
    table = torch.cat([coins, noise], 1).T
    assert float((torch.corrcoef(table) - torch.eye(10)).abs().max()) < 0.07


def test_a_draft_that_was_not_drawn_is_refused() -> None:
    sampler = sampler_of({"temperature": 1.0}, {"temperature": 1.0})
    tree = draft(sampler, 2)
    with pytest.raises(ConfigError, match="no sample"):
        sampler.sampled_drafts(WithoutReplacement).seal(tree)
    draws = sampler.sampled_drafts(WithoutReplacement)
    for depth, width in ((1, 1), (2, 2)):
        scores = draws.scores(LOGITS.expand(2, width, -1), depth)
        nothing = torch.zeros(2, width)
        draws.choose(scores, Nodes(nothing, nothing), [2] * width, depth)
    bent = tree.parents.clone()
    bent[1, 5] = 0
    with pytest.raises(ConfigError, match="how many a level has"):
        draws.seal(replace(tree, parents=bent))
