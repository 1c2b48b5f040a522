"""Compiled forwards beside the uncompiled ones.

The backend only records graphs (``eager``), which shows that a graph needs nothing of the cache and
that padding is invisible; ``make compiled`` runs the same through the compiler of ``torch``.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from jakiro.drafters.feature import FeatureDrafter
from jakiro.errors import ConfigError
from jakiro.target.target import Target
from tests.conformance import world
from tests.conformance.guided import Guided

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BACKEND = os.environ.get("JAKIRO_COMPILE_BACKEND", "eager")


def test_compiled_texts_are_the_plain_ones() -> None:
    """Two rows of different length, sampled; some drafts are right, some wrong."""
    plain = world.target("llama")
    target = Target(plain.model)
    rows = (0, 1)
    texts = [[*world.prompt(row), *world.truth("llama", "top_p", row)] for row in rows]
    head = FeatureDrafter(world.head(plain, "jakiro"), target)
    target.compile(BACKEND)
    head.compile(BACKEND)
    engine = world.make_engine(
        target, Guided(head, texts), world.TREES["dynamic"], max_batch_size=2
    )
    params = [replace(world.params("top_p", row), max_new_tokens=12) for row in rows]
    done = engine.generate([list(world.prompt(row)) for row in rows], params)
    assert [tuple(each.token_ids) for each in done] == [
        world.truth("llama", "top_p", row)[:12] for row in rows
    ]
    assert engine.stats.tau > 1.2, "nothing was accepted"
    assert target.compile_ms > 0


def test_what_cannot_be_compiled_is_refused() -> None:
    model = world.FAMILIES["llama"]()
    model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="'eager'"):
        Target(model).compile(BACKEND)


def test_a_window_changes_drafts_only() -> None:
    target = world.target("llama")
    inner = FeatureDrafter(world.head(target, "jakiro"), target, window=6, sinks=2)
    full = FeatureDrafter(world.head(target, "jakiro"), target)
    texts = [[*world.prompt(row), *world.truth("llama", "greedy", row)] for row in (2, 0)]
    shares = []
    for drafter in (inner, full):
        engine = world.make_engine(
            target, Guided(drafter, texts), world.TREES["dynamic"], max_batch_size=2
        )
        params = [world.params("greedy", row) for row in (2, 0)]
        done = engine.generate([list(world.prompt(row)) for row in (2, 0)], params)
        assert [tuple(each.token_ids) for each in done] == [
            world.truth("llama", "greedy", row) for row in (2, 0)
        ]
        shares.append(engine.stats.tau)
    assert min(shares) > 1.2
