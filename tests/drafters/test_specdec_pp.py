"""Stopping where a rejection is expected: the product of predictions, the level it ends, and the
best threshold of a small decision problem."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise, product
from math import prod
from operator import mul

import pytest
import torch
from torch import nn

from jakiro.drafters.specdec_pp import SpecDecPP
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.grow import Frontier
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.drafters.reference import paths, request

PROMPTS = [[7, 3, 9, 40, 11], [5], [8, 30, 12, 12, 9]]
ROOTS = [4, 9, 6]


def drafter(threshold: float) -> SpecDecPP:
    target = world.target("llama")
    model = world.draft_model(target, "wide")
    head = world.head(model, "specdec_pp", std=0.4)
    made = SpecDecPP(head, model, target, threshold)
    for ids in PROMPTS:
        made.begin(ids, None)
    return made


@torch.inference_mode()
def lengths(of: SpecDecPP, plan: TreePlan) -> list[int]:
    tree = of.draft(request(ROOTS, PROMPTS, plan))
    tree.check()
    return (tree.depth * tree.valid).amax(1).tolist()


def test_the_extremes_of_the_threshold() -> None:
    """1: as deep as the plan; 0: two levels, for no prediction is certain."""
    assert lengths(drafter(1.0), TreePlan.chain(7)) == [7] * 3
    assert lengths(drafter(0.0), TreePlan.chain(7)) == [2] * 3
    assert lengths(drafter(0.0), TreePlan.chain(1)) == [1] * 3
    with pytest.raises(ConfigError, match=r"threshold must lie between 0 and 1, got 1\.5"):
        drafter(1.5)


@pytest.mark.parametrize("threshold", [0.6, 0.9])
@pytest.mark.parametrize("tree", ["chain:8", "dynamic:8,3,60"])
@torch.inference_mode()
def test_a_row_ends_where_the_product_of_predictions_says(tree: str, threshold: float) -> None:
    """Against a forward over every path of the whole tree, without a cache."""
    plan = TreePlan.parse(tree)
    whole = drafter(1.0)
    full = whole.draft(request(ROOTS, PROMPTS, plan))
    found = lengths(drafter(threshold), plan)
    expected = []
    for row, ids in enumerate(PROMPTS):
        best: dict[int, float] = {}
        for path in paths(full, row).values():
            if not path:
                continue
            text = torch.tensor([[*ids, ROOTS[row], *path]])
            states = whole.model.features(text, torch.tensor([text.shape[1]]), whole.reads)
            chance = whole.head(states[0, -len(path) :]).sigmoid().prod().item()
            best[len(path)] = max(best.get(len(path), 0.0), chance)
        levels = (d for d in range(1, plan.depth) if 1 - best[d] > threshold)
        expected.append(min(next(levels, plan.depth) + 1, plan.depth))
    assert found == expected
    assert len(set(found)) > 1 or tree != "chain:8"


def test_the_best_time_to_stop_is_at_a_threshold() -> None:
    """Two hidden kinds of places, good and bad, which a token's acceptance goes by: of all rules
    that see the kinds so far, the one of the least time per token is ours, at some threshold, with
    a head that is right."""
    accept, stay, depth, verify, draft = (0.95, 0.5), 0.8, 3, 1.0, 0.2
    histories = [h for n in range(1, depth) for h in product((0, 1), repeat=n)]

    def cost(stops: Mapping[tuple[int, ...], bool]) -> float:
        time = tokens = 0.0
        for kinds in product((0, 1), repeat=depth):
            chance = 0.5 * prod(stay if a == b else 1 - stay for a, b in pairwise(kinds))
            size = next((n for n in range(1, depth) if stops[kinds[:n]]), depth)
            passed = accumulate((accept[kind] for kind in kinds[:size]), mul)
            time += chance * (verify + size * draft)
            tokens += chance * (1 + sum(passed))
        return time / tokens

    def ours(threshold: float) -> dict[tuple[int, ...], bool]:
        stops = {}
        for history in product((0, 1), repeat=depth - 1):
            made = drafter(threshold)
            made.head = nn.Flatten(0)  # what it is told are the log odds
            made._goes_on(None, TargetOutput(torch.zeros(1, 1, 4)))
            for n, kind in enumerate(history, start=1):
                odds = torch.logit(torch.tensor([[[accept[kind]]]]))
                node = Frontier(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), n)
                goes_on = made._goes_on(node, TargetOutput(torch.zeros(1, 1, 4), odds))
                stops[history[:n]] = not goes_on
        return stops

    rules = (dict(zip(histories, bits, strict=True)) for bits in product((False, True), repeat=6))
    best = min(map(cost, rules))
    assert min(cost(ours(level / 10)) for level in range(11)) == pytest.approx(best, rel=1e-9)
    assert best < min(cost(dict.fromkeys(histories, stop)) for stop in (True, False)) - 1e-3
