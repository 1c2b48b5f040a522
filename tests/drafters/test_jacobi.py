"""Jacobi iteration: a draft is what the target said about the rest of the last one."""

from __future__ import annotations

import pytest

from jakiro.drafters.jacobi import Jacobi
from jakiro.sampling.params import SamplingParams
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.drafters.host import Spy, chains


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(temperature=0.9), SamplingParams(temperature=1.2, top_k=4)],
    ids=["greedy", "free", "top_k"],
)
def test_guesses_are_the_choices_of_the_last_iteration(params: SamplingParams) -> None:
    """With the noise of the position, also when sampling."""
    target = ToyTarget.random(vocab_size=12, order=2, context_length=100)
    spy = Spy()
    engine = world.make_engine(target, Jacobi(), TreePlan.chain(5), rule=spy.rule)
    settings = SamplingParams(
        max_new_tokens=40, seed=5, temperature=params.temperature, top_k=params.top_k
    )
    (done,) = engine.generate([[3, 4, 5]], settings)
    assert done.stats.num_forwards > 10
    for (tree, choice, verdict), (later, _, _) in zip(spy.seen, spy.seen[1:], strict=False):
        (path,), (guesses,) = verdict.paths, chains(later)
        size = int(tree.valid.sum())
        refined = choice[0, path[-1] + 1 : size].tolist()
        assert guesses[: len(refined)] == refined[: len(guesses)]


def test_a_target_that_repeats_itself_is_guessed_whole() -> None:
    """From wherever the guesses start, each iteration makes at least one more of them right."""
    table = ToyTarget.random(vocab_size=8, order=1).table
    table[:, 5] += 100.0
    engine = world.make_engine(ToyTarget(table), Jacobi(), TreePlan.chain(6))
    (done,) = engine.generate([[1, 2]], SamplingParams(max_new_tokens=1 + 1 + 7))
    # The first iteration says 5 everywhere; from then on all is right.
    assert done.stats.num_forwards <= 3
    assert done.token_ids == [5] * 9
