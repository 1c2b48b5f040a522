"""Drafts of ``scripts.replay`` beside those that the package grows."""

from __future__ import annotations

import pytest
import torch

from jakiro.engine.costs import Costs
from jakiro.engine.policy import Fixed
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from scripts.replay import Clock, Off, drafted, known, play, text_of, verdict

PLAN = TreePlan("dynamic", depth=5, width=3, budget=8, reach=0.5)
WHOLE = TreePlan("dynamic", depth=5, width=3, budget=3 + 9 * 4)
PARTS = [PLAN.limited(depth, 3, budget) for depth in (1, 3, 5) for budget in (1, 2, 4, 8)]
COSTS = Costs(
    batches=(1, 2, 16),
    nodes=(1, 9),
    verify_ms=((10.0, 18.0),) * 3,
    context=1,
    slope_ms=(0.0, 0.0),
    depths=(1, 5),
    widths=(1, 3),
    draft_ms=(((1.0, 1.0), (5.0, 5.0)),) * 3,
)


def grown(plan: TreePlan, table: torch.Tensor, roots: list[int]) -> tuple[TokenTree, int]:
    """What a bigram ``table`` of log scores drafts by ``plan``, and of how many levels."""
    levels = 1

    def expand(frontier: Frontier) -> torch.Tensor:
        nonlocal levels
        levels = frontier.depth + 1
        return table[frontier.tokens]

    tokens = torch.tensor(roots)
    return grow(plan, tokens, table[tokens], expand, [plan.depth] * len(roots)), levels


def table_of(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, 9, generator=generator).mul(1 + seed % 3).log_softmax(-1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_part_is_what_would_have_been_drafted(part: TreePlan, seed: int) -> None:
    table, roots = table_of(seed), [seed % 9, (seed + 4) % 9]
    whole, _ = grown(WHOLE, table, roots)
    answers = [[root, *[1] * 8] for root in roots]
    texts = [(text_of([whole], row, answer), 0) for row, answer in enumerate(answers)]
    (found, levels), (right, made) = drafted(texts, part, [9, 9]), grown(part, table, roots)
    assert levels == made
    assert torch.equal(found.tokens[:, 1:], right.tokens[:, 1:])
    assert torch.equal(found.parents, right.parents)
    assert right.scores is not None and found.scores is not None
    assert torch.allclose(found.scores, right.scores)


def test_a_text_accepts_what_it_goes_on_with() -> None:
    """Of a bigram that always says the next number, greedily: a chain as deep as there is room."""
    table = torch.full((9, 9), -50.0)
    table[torch.arange(9), (torch.arange(9) + 1) % 9] = 0.0
    answer = [0, 1, 2, 3, 5, 6, 7]
    trees = [grown(WHOLE, table, [token])[0] for token in answer[:-1]]
    text = text_of(trees, 0, answer)
    for place, kept in enumerate([3, 2, 1, 0, 2, 1]):
        room = len(answer) - place - 1
        tree, _ = drafted([(text, place)], PLAN, [room])
        assert len(verdict(tree, [(text, place)]).paths[0]) - 1 == kept
    # Plainly six cycles; drafted to 3 with the bonus 5, of five levels, then of one to the end.
    assert play(Off(PLAN), [text], COSTS, Clock(0)) == 6 * 10.0
    assert play(Fixed(PLAN), [text], COSTS, Clock(0)) == (5.0 + 18.0) + (1.0 + 13.0)
    assert known(COSTS, 2).batches == (1, 2)
