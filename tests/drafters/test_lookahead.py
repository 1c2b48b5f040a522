"""The window of lookahead decoding: who sees whom, and which n-grams come out of it."""

from __future__ import annotations

import pytest
import torch

from jakiro.drafters.lookahead import Lookahead, Pool, Window
from jakiro.drafters.suffix_automaton import SuffixAutomaton
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import Sketch, stack
from tests.conformance import world
from tests.drafters.host import cycle_target, draft, drafted

CPU = torch.device("cpu")


def test_a_node_sees_the_first_level_up_to_its_column_and_its_column_below() -> None:
    levels = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    window, sketch = Window(levels), Sketch(1)
    sketch.path([5, 6], 9)
    window.sketch(sketch)
    tree = stack([sketch], CPU)
    tree.check()
    place = {node: (i, j) for i, row in enumerate(window.nodes) for j, node in enumerate(row)}
    assert [tree.tokens[0, node].item() for node in place] == [
        *range(10, 13),
        *range(20, 23),
        *range(30, 33),
    ]
    for node, (level, column) in place.items():
        sees = {other for other in range(tree.num_nodes) if tree.ancestors[0, node, other]}
        expected = {
            other
            for other, (i, j) in place.items()
            if (i == 0 and j <= column) or (j == column and i <= level)
        }
        assert sees == {0} | expected
        assert tree.depth[0, node] == 1 + column + level
        assert not tree.valid[0, node]
    assert drafted(tree) == {(5,), (5, 6)}


def test_levels_rise_until_columns_are_ngrams() -> None:
    window = Window([[1, 2]])
    assert window.advance([3, 4], ngram=3) == []
    assert window.advance([5, 6], ngram=3) == [(1, 3, 5), (2, 4, 6)]
    assert window.levels == [[3, 4], [5, 6]]
    assert window.advance([7, 8], ngram=3) == [(3, 5, 7), (4, 6, 8)]


def test_the_pool_forgets_the_oldest() -> None:
    pool = Pool(2)
    for tail in ((1, 2), (3, 4), (1, 2), (5, 6)):
        pool.add(9, tail)
    assert pool.after(9) == [(5, 6), (1, 2)]
    assert pool.after(8) == []


def test_bigrams_of_the_pool_are_what_the_target_says() -> None:
    target = ToyTarget.random(vocab_size=16, order=1, context_length=100)
    drafter = Lookahead(ngram=2, window=4)
    engine = world.make_engine(target, drafter)
    request = engine.submit(
        [3, 4, 5, 6], SamplingParams(max_new_tokens=30, temperature=1.0, seed=1)
    )
    for _ in range(8):
        engine.step()
    assert request.finish_reason is None
    ((_, pool),) = drafter._rows
    known = [token for token in range(16) if pool.after(token)]
    assert len(known) >= 4
    for token in known:
        assert pool.after(token) == [(int(target.table[token].argmax()),)]


def test_a_cycle_is_accepted_by_whole_ngrams() -> None:
    engine = world.make_engine(cycle_target(8), Lookahead(), max_batch_size=1)
    (done,) = engine.generate([[3]], SamplingParams(max_new_tokens=100))
    assert done.token_ids == [(4 + i) % 8 for i in range(100)]
    assert done.stats.tau > 3
    assert done.stats.alpha[:3] == [1.0] * 3


def test_it_drafts_within_the_plan_and_feeds_the_window_on_top() -> None:
    drafter = Lookahead(ngram=3, window=2, guesses=3)
    drafter.begin([7], None)
    ((_, pool),) = drafter._rows
    for tail in ((1, 2), (1, 3), (4, 5)):
        pool.add(7, tail)
    assert drafted(draft(drafter, [7])) == {(1,), (1, 2), (1, 3), (4,), (4, 5)}
    assert drafted(draft(drafter, [7], TreePlan.chain(2))) == {(4,), (4, 5)}
    assert drafted(draft(drafter, [7], caps=[1])) == {(1,), (4,)}
    assert draft(drafter, [7], caps=[0]).num_nodes == 1 + 2


def test_a_tree_of_another_drafter_teaches_it_nothing() -> None:
    """Under an arbiter the window is not fed in the cycles that are taken."""
    inner = Lookahead(ngram=3, window=2, guesses=2)
    drafter = SuffixAutomaton(inner, threshold=2)
    engine = world.make_engine(cycle_target(6), drafter, max_batch_size=1)
    (done,) = engine.generate([[1, 2, 3, 4, 5, 0, 1, 2]], SamplingParams(max_new_tokens=20))
    assert done.token_ids == [(3 + i) % 6 for i in range(20)]
    assert inner.plan.depth == 2


@pytest.mark.parametrize(("ngram", "window", "guesses"), [(1, 7, 7), (5, 0, 7), (5, 7, 0)])
def test_settings_are_checked(ngram: int, window: int, guesses: int) -> None:
    with pytest.raises(ConfigError, match=f"got {ngram}, {window} and {guesses}"):
        Lookahead(ngram, window, guesses)
