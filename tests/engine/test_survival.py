"""How many levels drafts make, from counts that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro.engine.acceptance import Grid
from jakiro.engine.survival import Survival

GRID = Grid(6, (5, 10, 20))


def test_drafts_of_which_nothing_is_known_make_all_their_levels() -> None:
    assert Survival(GRID).shares() == [[1.0] * 3] * 6


def test_shares_are_those_that_were_seen() -> None:
    """Half of the drafts end at the second level, the others at the fourth."""
    survival = Survival(GRID)
    for made in [2, 4] * 200:
        survival.count((5, 2), 6, made)
    assert np.array(survival.shares())[:, 2].tolist() == pytest.approx(
        [1, 1, 0.5, 0.5, 0, 0], abs=0.06
    )


def test_what_was_not_seen_is_like_what_is_next_to_it() -> None:
    """Nine of ten drafts that may have three levels make each: a fourth, and those of a smaller
    budget, are expected to do the same."""
    survival = Survival(GRID)
    for number in range(400):
        survival.count((2, 1), 3, 1 if number % 10 == 0 else 2 if number % 10 == 5 else 3)
    shares = np.array(survival.shares())
    assert shares[:3, 1].tolist() == pytest.approx([1, 0.9, 0.8], abs=0.05)
    np.testing.assert_allclose(shares[:, 0], shares[:, 1], rtol=0.05)
    going = shares[3:, 1] / shares[2:-1, 1]
    np.testing.assert_allclose(going, shares[2, 1] / shares[1, 1], rtol=0.05)


def test_a_level_that_a_draft_could_not_have_says_nothing() -> None:
    survival = Survival(GRID)
    for _ in range(50):
        survival.count((0, 0), 1, 1)
        survival.count((3, 0), 4, 4)
    assert [row[0] for row in survival.shares()[:4]] == [1.0] * 4
    survival.count((3, 0), 4, 0)  # not even a first level: it was asked for one
    assert survival.shares()[1][0] < 1


def test_older_drafts_are_forgotten_however_often_somebody_asks() -> None:
    survival = Survival(GRID)
    for made in [4] * 200 + [1] * 200:
        survival.count((5, 2), 6, made)
        survival.shares()
    assert survival.shares()[1][2] == pytest.approx(0, abs=0.06)
