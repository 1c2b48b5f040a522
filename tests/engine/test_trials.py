"""What is drafted when, where what every part promises is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jakiro.engine.acceptance import Choice
from jakiro.engine.pace import Pace, Size
from jakiro.engine.trials import FRESH, PLAIN_FIRST, WAITS, Outlook, Trials

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


@pytest.mark.parametrize(("balance", "tried"), [(2.5, None), (3.5, WHOLE)])
def test_where_nothing_should_pay_a_trial_stakes_a_third(
    balance: float, tried: Choice | None
) -> None:
    """The whole is due to be tried and would lose one plain cycle."""
    outlook = replace(PAYS, rates=np.full((8, 1), 1.0), best=WHOLE, choice=None)
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


def test_a_text_alone_begins_with_the_whole() -> None:
    """The first of a batch, where it is alone and drafts are made; no text beside another."""
    alone = replace(PAYS, num_rows=1, rates=np.full((8, 1), 2.0))
    trials = Trials(WHOLE)
    trials.begin(is_first=False, is_off=False)
    assert trials.next(alone, known()) == PAYS.choice
    trials.begin(is_first=True, is_off=False)
    assert trials.next(PAYS, known()) == PAYS.choice
    assert trials.next(replace(alone, choice=None), known()) is None
    assert trials.next(alone, known(balance=1.5)) == PAYS.choice
    trials.turn()
    done = [trials.next(alone, known()) for _ in range(FRESH + 1)]
    assert done == [WHOLE] * FRESH + [PAYS.choice]
    trials.begin(is_first=True, is_off=False)
    dear = replace(alone, rates=np.full((8, 1), 2.6))
    assert trials.next(dear, known()) == PAYS.choice, "all five tokens of the whole were too slow"


def test_after_a_part_that_was_accepted_whole_the_whole_is_drafted() -> None:
    """Ever rarer while it goes no deeper than the part, which has two levels."""
    alone = replace(PAYS, num_rows=1, rates=np.full((8, 1), 2.0))
    trials, made = Trials(WHOLE), []
    for accepted in [1] * 3 + [2] * 40:
        made.append(trials.next(alone, known()))
        trials.see(made[-1] or WHOLE, accepted, 2, PAYS.choice)
        trials.turn()
    assert [i for i, part in enumerate(made) if part == WHOLE] == [4, 7, 12, 21, 38]
    trials.see(WHOLE, 3, 8, PAYS.choice)
    trials.see(PAYS.choice, 2, 2, PAYS.choice)
    assert trials.next(alone, known()) == WHOLE, "it went deeper, so the part says too little"


@pytest.mark.parametrize(
    ("balance", "made"), [(3.5, WHOLE), (1.2, (2, 0)), (0.14, (0, 0)), (0.1, None)]
)
def test_what_cannot_be_afforded_is_made_smaller(balance: float, made: Choice | None) -> None:
    """A third of 3.5 covers the whole, of 1.2 three levels, and of 0.14 not even one, which all of
    it does."""
    deep = replace(PAYS, choice=WHOLE, rates=np.arange(3.0, 11.0)[:, None])
    assert Trials(WHOLE).next(deep, known(balance)) == made
