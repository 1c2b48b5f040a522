"""Counts, acceptance and log-probabilities against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jakiro.engine.policy import Fixed
from jakiro.engine.stats import Stats
from jakiro.sampling.params import SamplingParams
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.conformance.doubles import Scripted
from tests.engine.bytes_tokenizer import END, as_bytes
from tests.engine.script import PROMPT, Says, engine, log_probs_after


def test_hand_made_verdicts() -> None:
    stats = Stats(num_prefills=1, num_forwards=4, num_emitted=1 + 3 + 1 + 4 + 2)
    for num_accepted, deepest in ((2, 3), (0, 3), (3, 3), (1, 1)):
        stats.count_path(num_accepted, deepest)
    assert stats.tau == 10 / 4
    assert stats.offered_by_depth == [4, 2, 2]
    assert stats.accepted_by_depth == [3, 2, 1]
    assert stats.alpha == [3 / 4, 1, 1 / 2]


def test_a_fresh_count_divides_by_nothing() -> None:
    assert (Stats().tau, Stats().alpha, Stats().outside_share) == (0, [], 0)


def test_shares_of_time() -> None:
    stats = Stats()
    stats.count_times(draft_ms=3, module_ms=2, verify_ms=5, ms=10)
    stats.count_times(draft_ms=3, module_ms=2, verify_ms=7, ms=10)
    assert (stats.draft_ms, stats.module_ms, stats.verify_ms, stats.cycle_ms) == (6, 4, 12, 20)
    assert stats.outside_share == pytest.approx(4 / 20)


def test_counts_of_a_run_whose_drafts_are_known() -> None:
    """Every second token of each draft is wrong: chains of 3, one accepted, two emitted."""
    text = as_bytes("abcdefghijk")
    drafter = Scripted([[*PROMPT, *text]], lambda right: [*right[:1], *(0 for _ in right[1:])])
    found = engine(text)
    found.drafter, found.plan = drafter, TreePlan.chain(3)
    found._batch.policy = Fixed(found.plan)
    (done,) = found.generate([PROMPT], SamplingParams(max_new_tokens=11), processors=[Says(text)])
    stats = done.stats
    assert done.token_ids == text
    # One token from prefill, then five cycles of two; in the last the chain is one node long.
    assert (stats.num_prefills, stats.num_forwards, stats.num_emitted) == (1, 5, 11)
    assert stats.tau == 2
    assert stats.offered_by_depth == [5, 4, 0]
    assert stats.accepted_by_depth == [5, 0, 0]


def test_tokens_behind_the_end_are_not_counted() -> None:
    script = [*as_bytes("ab"), END, *as_bytes("cdefgh")]
    found = engine(script, depth=6)
    (done,) = found.generate([PROMPT], SamplingParams(max_new_tokens=9), processors=[Says(script)])
    assert done.stats.num_emitted == 3
    assert done.stats.tau == 2, "one forward, of whose seven tokens two counted"


def test_the_engine_totals_its_requests() -> None:
    target = world.target("llama")
    found = world.make_engine(target, world.make_feature_drafter(target), max_batch_size=2)
    rows = range(3)
    each = [replace(world.params("greedy", row), max_new_tokens=8 + row) for row in rows]
    done = found.generate([list(world.prompt(row)) for row in rows], each)
    total = found.stats
    assert total.num_prefills == 3
    assert total.num_emitted == sum(c.stats.num_emitted for c in done) == 8 + 9 + 10
    assert total.num_forwards == sum(c.stats.num_forwards for c in done)
    depths = range(len(total.offered_by_depth))
    for depth in depths:
        assert total.offered_by_depth[depth] == sum(
            sum(c.stats.offered_by_depth[depth : depth + 1]) for c in done
        )
    assert 0 < total.module_ms <= total.draft_ms <= total.cycle_ms
    assert all(0 < c.stats.cycle_ms <= total.cycle_ms for c in done)
    found.reset_stats()
    assert found.stats == Stats()


@pytest.mark.parametrize("depth", [0, 3, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_are_those_of_the_raw_model(temperature: float, depth: int) -> None:
    script = as_bytes("abcdefgh")
    params = SamplingParams(max_new_tokens=6, temperature=temperature, top_k=3, seed=1, logprobs=2)
    (done,) = engine(script, depth).generate([PROMPT], params, processors=[Says(script)])
    assert done.logprobs is not None
    assert [entry.token_id for entry in done.logprobs] == done.token_ids == script[:6]
    for count, entry in enumerate(done.logprobs):
        expected = log_probs_after([*PROMPT, *script[:count]])
        best = expected.topk(2)
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-9)
        assert list(entry.top) == best.indices.tolist()
        assert list(entry.top.values()) == pytest.approx(best.values.tolist(), abs=1e-9)


def test_logprobs_are_cut_with_the_tokens_and_left_out_unless_asked_for() -> None:
    script = [*as_bytes("ab"), END, *as_bytes("cdefgh")]
    for logprobs, expected in ((0, 3), (None, None)):
        (done,) = engine(script).generate(
            [PROMPT],
            SamplingParams(max_new_tokens=9, logprobs=logprobs),
            processors=[Says(script)],
        )
        assert (None if done.logprobs is None else len(done.logprobs)) == expected
