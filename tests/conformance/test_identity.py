"""The identity suite: whatever drafts, the text is that of plain decoding, token for token.

Every registered drafter (trained ones untrained, in two sizes) x exact rule x tree x batch size x
sampling setting, wrapped by ``Guided``, against the oracle in float64: the full product on Llama;
for variants of one head and for arbiters every tree in every batch size. On every other family one
cell per drafter, laid out so that every drafter, tree, batch size, setting and family meets every
other in some cell, where the views of a target are one drafter and take turns. A new line in the
registry of drafters, of rules or of families is covered by being there.

A cell in which nothing was accepted or nothing rejected would prove nothing: each must show an
accepted path of three nodes, a rejection and twenty different tokens.
"""

from __future__ import annotations

import random
from itertools import cycle, product

import pytest

from jakiro.engine.engine import Completion
from jakiro.tree.shapes import TreePlan
from jakiro.verify import RULES
from tests.conformance import world
from tests.conformance.doubles import OnAndOff
from tests.conformance.guided import Guided
from tests.families import FAMILIES

Cell = tuple[str, str, str, str, int, str]
"""Family, rule, drafter, tree, batch size, setting."""

EXACT = [rule.name for rule in RULES.values() if rule.promise == "exact"]
COLUMNS = (world.kinds(), list(world.TREES), list(world.ROWS), list(world.SETTINGS))


REGISTERED = [*world.trained_cases(), *world.untrained_cases()]


def full(family: str) -> list[Cell]:
    return [(family, *cell) for cell in product(EXACT, REGISTERED, *COLUMNS[1:])]


def light() -> list[Cell]:
    """Every tree in every batch size, rules and settings in turn."""
    _, trees, batches, settings = COLUMNS
    others = (case for case in COLUMNS[0] if case not in (*REGISTERED, *world.view_cases()))
    return [
        (world.home(cell[0]), EXACT[i % len(EXACT)], *cell, settings[i % len(settings)])
        for i, cell in enumerate(product(others, trees, batches))
    ]


def views() -> list[Cell]:
    """Each once, then on every family one that it takes, in turn."""
    trees, batches, settings = COLUMNS[1:]
    named = [(case, world.home(case)) for case in world.view_cases()]
    wanted = cycle(world.view_cases())
    for family in FAMILIES:
        case = next(case for case in wanted if world.takes(case, family))
        named.append((case, family))
    return [
        (
            family,
            EXACT[i % len(EXACT)],
            case,
            trees[i % len(trees)],
            batches[i // 2 % len(batches)],
            settings[i % len(settings)],
        )
        for i, (case, family) in enumerate(named)
    ]


def diagonal(family: str, shift: int) -> list[Cell]:
    """One cell per drafter; the other columns advance at their own pace."""
    drafters, trees, batches, settings = COLUMNS
    return [
        (
            family,
            EXACT[(i + shift) % len(EXACT)],
            drafter,
            trees[(i + shift) % len(trees)],
            batches[(i // 2 + shift) % len(batches)],
            settings[(i + shift // 2) % len(settings)],
        )
        for i, drafter in enumerate(case for case in drafters if case not in world.view_cases())
    ]


CELLS = [*full("llama"), *light(), *views()] + [
    cell
    for shift, family in enumerate(f for f in FAMILIES if f != "llama")
    for cell in diagonal(family, shift)
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_text_is_that_of_plain_decoding(cell: Cell) -> None:
    family, rule, case, tree, batch_size, setting = cell
    rows = world.ROWS[batch_size]
    target = world.target(family)
    texts = [[*world.prompt(row), *world.truth(family, setting, row)] for row in rows]
    drafter = Guided(world.make_drafter(case, target), texts, seed=3)
    engine = world.make_engine(
        target, drafter, world.TREES[tree], rule=world.find_rule(rule), max_batch_size=batch_size
    )
    done = engine.generate(
        [list(world.prompt(row)) for row in rows], [world.params(setting, row) for row in rows]
    )
    for row, completion in zip(rows, done, strict=True):
        assert completion.token_ids == list(world.truth(family, setting, row))
        assert completion.finish_reason == "length"
    assert_cell_proves_something(done)


def assert_cell_proves_something(done: list[Completion]) -> None:
    accepted = [c.stats.accepted_by_depth for c in done]
    offered = [c.stats.offered_by_depth for c in done]
    assert any(sum(depths[2:]) for depths in accepted), "no path of three nodes was accepted"
    assert accepted != offered, "nothing was ever rejected"
    assert len({token for c in done for token in c.token_ids}) >= 20, "too few different tokens"


def test_every_two_values_meet_in_some_cell() -> None:
    """Views count as one drafter."""
    viewed = world.view_cases()
    kinds = [case for case in COLUMNS[0] if case not in viewed]
    columns = (list(FAMILIES), EXACT, [*kinds, "view"], *COLUMNS[1:])
    cells = [(*c[:2], "view" if c[2] in viewed else c[2], *c[3:]) for c in CELLS]
    met = {(i, c[i], j, c[j]) for c in cells for i in range(len(c)) for j in range(i)}
    missing = [
        (one, two)
        for i in range(len(columns))
        for j in range(i)
        for one, two in product(columns[i], columns[j])
        if (i, one, j, two) not in met
    ]
    assert not missing


@pytest.mark.parametrize(
    ("case", "family"),
    [
        *product(world.trained_cases(), FAMILIES),
        *((c, world.home(c)) for c in world.kinds() if c not in world.trained_cases()),
    ],
)
def test_rows_of_different_settings_share_a_batch(case: str, family: str) -> None:
    target = world.target(family)
    rows = list(enumerate(world.SETTINGS))
    texts = [[*world.prompt(row), *world.truth(family, setting, row)] for row, setting in rows]
    drafter = Guided(world.make_drafter(case, target), texts, seed=4)
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=3)
    done = engine.generate(
        [list(world.prompt(row)) for row, _ in rows],
        [world.params(setting, row) for row, setting in rows],
    )
    for (row, setting), completion in zip(rows, done, strict=True):
        assert completion.token_ids == list(world.truth(family, setting, row))
    assert_cell_proves_something(done)


@pytest.mark.parametrize("case", world.kinds())
def test_limits_may_change_from_cycle_to_cycle_and_row_to_row(case: str) -> None:
    """Any schedule of trees and of cycles without a draft, rows being limited one by one."""
    chance = random.Random(case)
    whole = TreePlan("dynamic", depth=4, width=3, budget=12)
    parts = [
        None if chance.random() < 0.3 else whole.limited(*(chance.randint(1, 4) for _ in range(3)))
        for _ in range(7)
    ]
    policy = OnAndOff.of([whole, *parts], [4, 0, 2, 4, 3])
    target, setting = world.target("llama"), chance.choice(list(world.SETTINGS))
    texts = [[*world.prompt(row), *world.truth("llama", setting, row)] for row in world.ROWS[3]]
    drafter = Guided(world.make_drafter(case, target), texts, seed=3)
    engine = world.make_engine(target, drafter, whole, policy=policy, max_batch_size=3)
    done = engine.generate(
        [list(world.prompt(row)) for row in world.ROWS[3]],
        [world.params(setting, row) for row in world.ROWS[3]],
    )
    for row, completion in zip(world.ROWS[3], done, strict=True):
        assert completion.token_ids == list(world.truth("llama", setting, row))
    assert_cell_proves_something(done)


@pytest.mark.parametrize("setting", world.SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding_in_the_engine(family: str, setting: str) -> None:
    """The empty tree, which ``Guided`` never shows: the baseline of every speed figure."""
    target, rows = world.target(family), range(len(world.PROMPT_LENGTHS))
    engine = world.make_engine(target, world.make_drafter("none", target), max_batch_size=3)
    done = engine.generate(
        [list(world.prompt(row)) for row in rows], [world.params(setting, row) for row in rows]
    )
    for row, completion in zip(rows, done, strict=True):
        assert completion.token_ids == list(world.truth(family, setting, row))
        assert completion.stats.tau == 1
