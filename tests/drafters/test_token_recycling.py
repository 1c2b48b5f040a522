"""Token recycling against a scalar account of what the target said last about each token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.drafters.token_recycling import Adjacency, TokenRecycling, template
from jakiro.errors import CheckpointError, ConfigError
from jakiro.hub import memory
from jakiro.sampling.params import SamplingParams
from jakiro.target.output import TargetOutput
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import EAGLE1_PATHS, TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from tests.conformance import world
from tests.drafters.host import chains, cycle_target, draft, drafted

WIDE = TreePlan("dynamic", depth=6, width=8, budget=80)


def test_the_template_has_about_the_published_levels() -> None:
    levels = Counter(map(len, template(WIDE)))
    assert [levels[depth] for depth in range(1, 7)] == [8, 21, 25, 19, 6, 1]


@pytest.mark.parametrize("budget", [1, 7, 20, 80])
def test_templates_hold_parents_and_better_siblings_first(budget: int) -> None:
    paths = template(TreePlan("dynamic", depth=5, width=6, budget=budget))
    assert len(set(paths)) == len(paths) == budget
    for place, path in enumerate(paths):
        assert len(path) <= 5 and max(path) < 6
        needed = [path[:-1]] if len(path) > 1 else []
        needed += [(*path[:-1], path[-1] - 1)] if path[-1] else []
        assert set(needed) <= set(paths[:place])


def test_static_and_chain_plans_are_templates_themselves() -> None:
    static = TreePlan.static(EAGLE1_PATHS)
    assert template(static) == static.paths
    assert template(TreePlan.chain(3)) == ((0,), (0, 0), (0, 0, 0))


def test_a_prompt_leaves_its_bigrams_the_latest_first() -> None:
    drafter = TokenRecycling()
    drafter.begin([1, 2, 1, 3, 1, 2, 4], None)
    plan = TreePlan("dynamic", depth=2, width=2, budget=6)
    assert drafted(draft(drafter, [1], plan)) == {(2,), (3,), (2, 4), (2, 1), (3, 1)}
    assert drafted(draft(drafter, [4], plan)) == set()
    assert drafted(draft(drafter, [1], plan, [1])) == {(2,), (3,)}


class Watched(TokenRecycling):
    """Keeps its own account of what it should know: per token, what was said at its deepest
    accepted node, else its best rejected one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.account: dict[int, list[int]] = {}

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        super().accept(tree, verdict, out)
        (path,), tokens = verdict.paths, tree.tokens[0].tolist()
        for token in set(tokens):
            nodes = [n for n, t in enumerate(tokens) if t == token and tree.valid[0, n]]
            accepted = [node for node in nodes if node in path]
            if nodes:
                winner = accepted[-1] if accepted else nodes[0]
                order = out.logits[0, winner].argsort(descending=True)
                self.account[token] = order[:8].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_the_unperturbed_best_of_the_right_node(temperature: float) -> None:
    target = ToyTarget.random(vocab_size=16, order=2, context_length=200)
    drafter = Watched()
    engine = world.make_engine(target, drafter, TreePlan("dynamic", 4, 8, 24), max_batch_size=1)
    params = SamplingParams(temperature=temperature, seed=3, max_new_tokens=60)
    (done,) = engine.generate([[3, 5]], params)
    assert done.stats.tau > 1
    assert len(drafter.account) > 8
    for token, expected in drafter.account.items():
        assert list(drafter._matrix.after(token)) == expected


def test_once_around_a_cycle_every_draft_is_accepted_whole() -> None:
    engine = world.make_engine(cycle_target(16), TokenRecycling(), WIDE, max_batch_size=1)
    params = SamplingParams(max_new_tokens=15)
    first, second = engine.generate([[3], [3]], params)
    assert first.stats.tau < 7
    assert (second.stats.tau, second.stats.num_forwards) == (7.0, 2)
    assert first.token_ids == second.token_ids


def test_scopes() -> None:
    def tau(drafter: TokenRecycling) -> float:
        engine = world.make_engine(cycle_target(16), drafter, WIDE, max_batch_size=1)
        _, second = engine.generate([[3], [3]], SamplingParams(max_new_tokens=15))
        return second.stats.tau

    fresh = world.make_engine(cycle_target(16), TokenRecycling("request"), WIDE)
    (alone,) = fresh.generate([[3]], SamplingParams(max_new_tokens=15))
    assert tau(TokenRecycling("request")) == alone.stats.tau < tau(TokenRecycling("session"))
    shared = Adjacency()
    tau(TokenRecycling("session", shared))
    assert shared.after(4) == ()
    tau(TokenRecycling("global", shared))
    assert shared.after(4)[0] == 5
    # A hot start, from what was learned before.
    assert tau(TokenRecycling("request", shared)) == 7.0


def test_rows_learn_apart_in_scope_request() -> None:
    drafter = TokenRecycling("request")
    drafter.begin([1, 2], None)
    drafter.begin([1, 3], None)
    plan = TreePlan.chain(1)
    assert chains(draft(drafter, [1, 1], plan)) == [[2], [3]]
    drafter.keep([1])
    assert chains(draft(drafter, [1], plan)) == [[3]]


def test_a_matrix_comes_back_from_disk(tmp_path: Path) -> None:
    matrix = Adjacency(3)
    matrix.put(4, [7, 8, 9, 10])
    matrix.put(2, [1])
    memory.save(matrix, tmp_path / "matrix")
    found = memory.load(Adjacency, tmp_path / "matrix")
    assert (found.width, found.after(4), found.after(2)) == (3, (7, 8, 9), (1,))
    memory.save(Adjacency(), tmp_path / "empty")
    assert memory.load(Adjacency, tmp_path / "empty").after(4) == ()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="scope must be"):
        TokenRecycling("forever")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a matrix"):
        TokenRecycling("global")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Adjacency(0)
    arrays = Adjacency().arrays() | {"tokens": torch.arange(3).numpy()}
    with pytest.raises(CheckpointError, match="do not fit"):
        Adjacency.from_arrays(arrays)
