"""What is drafted when, where what every part promises is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jakiro.engine.acceptance import Choice
from jakiro.engine.pace import Pace, Size
from jakiro.engine.trials import PLAIN_FIRST, WAITS, Outlook, Trials

WHOLE = (7, 0)
"""Of eight parts, which would lose 1/8, 2/8 .. plain cycles if nothing is accepted."""
PAYS = Outlook(
    num_rows=2,
    levels=np.full((8, 1), 4),
    rates=np.full((8, 1), 4.0),
    cycle_ms=1 + np.arange(1.0, 9.0)[:, None] / 8,
    plain_ms=1.0,
    best=(1, 0),
    choice=(1, 0),
    least=0.125,
)


def known(balance: float = 30.0) -> Size:
    """Plain cycles of it were measured."""
    size = Size(Pace(count=PLAIN_FIRST))
    size.account.balance = balance
    return size


@pytest.mark.parametrize(
    ("balance", "tried"), [(0.12, None), (0.2, (0, 0)), (2.5, (5, 0)), (3.5, WHOLE)]
)
def test_where_nothing_should_pay_a_trial_stakes_a_third(
    balance: float, tried: Choice | None
) -> None:
    """The larger the better, but the whole would lose one plain cycle: as much of it as a third of
    the balance covers, or all of that the smallest part."""
    rates = np.arange(1.0, 1.8, 0.1)[:, None]
    outlook = replace(PAYS, rates=rates, best=WHOLE, choice=None)
    trials = Trials(WHOLE)
    done = [trials.next(outlook, known(balance)) for _ in range(WAITS[0])]
    assert done == [None] * (WAITS[0] - 1) + [tried]


def test_other_parts_are_tried_at_growing_intervals() -> None:
    """The whole first, then twice one level more."""
    trials = Trials(WHOLE)
    done = [trials.next(PAYS, known()) for _ in range(150)]
    tried = {cycle: part for cycle, part in enumerate(done, start=1) if part != PAYS.choice}
    assert tried == {8: WHOLE, 24: (2, 0), 56: (2, 0), 120: WHOLE}
    trials.turn()
    assert [trials.next(PAYS, known()) for _ in range(8)][-1] == (2, 0)
    trials.repeat()
    assert trials.next(PAYS, known()) == (2, 0)


@pytest.mark.parametrize(("rate", "tried"), [(2.7, WHOLE), (2.6, (2, 0))])
def test_what_there_is_no_hope_of_is_not_tried(rate: float, tried: Choice) -> None:
    """The whole is due; half as good again as expected, it would be as good as what is done, or
    not quite."""
    rates = PAYS.rates.copy()
    rates[WHOLE] = rate
    trials, outlook = Trials(WHOLE), replace(PAYS, rates=rates)
    assert [trials.next(outlook, known()) for _ in range(WAITS[0])][-1] == tried


@pytest.mark.parametrize(("num_plain", "drafts"), [(2, 8), (3, 16), (5, 64), (6, 96), (2000, 96)])
def test_plain_cycles_come_first_and_again(num_plain: int, drafts: int) -> None:
    """The sooner the fewer there were: a pace that two of them gave may be a moment's."""
    trials, size = Trials(WHOLE), known()
    assert trials.next(PAYS, Size(Pace(count=PLAIN_FIRST - 1))) is None
    size.plain.count = num_plain
    trials.num_drafts = drafts - 1
    assert trials.next(PAYS, size) == PAYS.choice
    trials.num_drafts = drafts
    assert trials.next(PAYS, size) is None


def wholes(trials: Trials, drafts: int, *, is_accepted: bool, is_better: bool) -> list[int]:
    """Which of so many drafts of a text alone are of the whole."""
    alone, found = replace(PAYS, num_rows=1, rates=np.full((8, 1), 2.0)), []
    for i in range(drafts):
        part = trials.next(alone, known())
        assert part in (PAYS.choice, WHOLE)
        trials.see(part, is_accepted, is_better)
        trials.turn()
        found += [i] if part == WHOLE else []
    return found


def test_after_a_part_that_was_accepted_the_whole_is_drafted() -> None:
    """Ever rarer while it brings less than parts, and sooner again while it brings more."""
    trials = Trials(WHOLE)
    assert wholes(trials, 9, is_accepted=False, is_better=True) == []
    assert wholes(trials, 40, is_accepted=True, is_better=False) == [1, 4, 9, 18, 27, 36]
    assert wholes(trials, 22, is_accepted=True, is_better=True) == [5, 10, 13, 15, 17, 19, 21]


@pytest.mark.parametrize(
    ("change", "balance"),
    [
        ({"num_rows": 2}, 30.0),
        ({"choice": None}, 30.0),
        ({"rates": np.full((8, 1), 2.6)}, 30.0),
        ({}, 1.5),
    ],
    ids=["beside others", "drafting is off", "all five tokens of it were too slow", "too dear"],
)
def test_where_the_whole_is_not_drafted_whatever_was_accepted(
    change: dict[str, object], balance: float
) -> None:
    trials, others = Trials(WHOLE), Trials(WHOLE)
    for each in (trials, others):
        each.see((1, 0), True, True)
    alone = replace(PAYS, num_rows=1, rates=np.full((8, 1), 2.0))
    assert trials.next(alone, known()) == WHOLE
    assert others.next(replace(alone, **change), known(balance)) != WHOLE  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("balance", "made"), [(3.5, WHOLE), (1.2, (2, 0)), (0.14, (0, 0)), (0.1, None)]
)
def test_what_cannot_be_afforded_is_made_smaller(balance: float, made: Choice | None) -> None:
    """A third of 3.5 covers the whole, of 1.2 three levels, and of 0.14 not even one, which all of
    it does."""
    deep = replace(PAYS, choice=WHOLE, rates=np.arange(3.0, 11.0)[:, None])
    assert Trials(WHOLE).next(deep, known(balance)) == made
