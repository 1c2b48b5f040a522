"""Rules that keep the law and not the tokens: greedy equality, and the law of whole engines.

The toy target looks at its last two tokens, so the tokens that follow each pair in a long text are
independent draws from one known law, whatever cycle, node or bonus they came from. A chi-square
test of pairs of successive tokens compares them, at settings where temperature and both filters
bite. All seeds are fixed: the verdict is the same in every run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.drafters.none import NoDrafter
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.engine.engine import Engine
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.verify import RULES
from tests.conformance import world
from tests.conformance.doubles import Table
from tests.conformance.guided import Guided
from tests.conformance.test_identity import assert_cell_proves_something
from tests.oracles.plain import KeyedGumbel, Settings, processors_of

VOCAB, SIZE = 4, 200
PLANS = {"chain": TreePlan.chain(3), "static": world.TREES["static"]}
SAMPLED = [rule for rule in RULES.values() if rule.is_sampled]
CASES = list({(r.function, kind): (r.name, kind) for r in SAMPLED for kind in r.trees}.values())
"""Every rule on every kind of tree; two names of one function count once."""
SETTINGS = (
    SamplingParams(temperature=0.6, top_k=3, top_p=0.9),
    SamplingParams(temperature=1.4, min_p=0.05),
)
ROWS = [(setting, seed) for setting in SETTINGS for seed in range(16)]


def drafters() -> list[str]:
    """Those that can be sampled; ``none`` has nothing to sample."""
    cases = [case for case in world.kinds() if case != "none"]
    homes = {case: world.target(world.home(case)) for case in cases}
    return [case for case in cases if world.make_drafter(case, homes[case]).can_sample]


def on_toy(case: str, target: ToyTarget) -> Drafter:
    """The drafter ``case`` of a toy; a draft model is another toy, and so is any view of it."""
    if case == VIEW:
        return SelfDrafter(toy(1), confidence=0.5)
    entry = registry.find(case.partition("/")[0])
    return (
        entry.load()(toy(1), target)
        if entry.made_of == "model"
        else world.make_drafter(case, target)
    )  # type: ignore[no-any-return]


VIEW = SelfDrafter.name
DRAFTERS = drafters()
FIT_A_TOY = [
    *(
        case
        for case in DRAFTERS
        if not case.endswith(("/narrow", "/frequent")) and case not in world.view_cases()
    ),
    VIEW,
]
"""Draft vocabularies are larger than a toy's, and a toy has no modules to view otherwise."""


def toy(order: int) -> ToyTarget:
    target = ToyTarget.random(VOCAB, order, seed=1, context_length=512)
    target.table *= 0.4
    return target


def engine(target: Target, drafter: Drafter, case: tuple[str, str], size: int = 32) -> Engine:
    rule, kind = case
    return Engine(target, drafter, RULES[rule], plan=PLANS[kind], max_batch_size=size)


def texts(of: Engine, rows: list[tuple[SamplingParams, int]], size: int = SIZE) -> list[list[int]]:
    each = [replace(setting, seed=seed, max_new_tokens=size) for setting, seed in rows]
    return [[2, 1, *done.token_ids] for done in of.generate([[2, 1]] * len(rows), each)]


def processed(target: ToyTarget, context: tuple[int, ...], params: SamplingParams) -> list[float]:
    """The law of what follows ``context``, by ``transformers``."""
    scores = target.table[context][None]
    wanted = Settings(params.max_new_tokens, params.temperature, params.top_k, params.top_p)
    for stage in processors_of(replace(wanted, min_p=params.min_p), 0):
        if not isinstance(stage, KeyedGumbel):
            scores = stage(torch.tensor([context]), scores)
    return scores[0].softmax(-1).tolist()


def assert_law(target: ToyTarget, params: SamplingParams, answers: list[list[int]]) -> None:
    """Chi-square of successive pairs given the tokens before them; 1 in 10 000 fails by chance."""
    order = target.table.ndim - 1
    pairs: Counter[tuple[int, ...]] = Counter()
    for text in answers:
        pairs.update(tuple(text[i - order : i + 2]) for i in range(2, len(text) - 1, 2))
    statistic, freedom = 0.0, 0
    for context in product(range(VOCAB), repeat=order):
        total = sum(count for cell, count in pairs.items() if cell[:order] == context)
        cells = []
        for first, one in enumerate(processed(target, context, params)):
            after = processed(target, (*context, first)[-order:], params)
            cells += [(pairs[*context, first, second], one * p) for second, p in enumerate(after)]
        assert not any(found for found, prob in cells if prob == 0), "the law forbids this token"
        large = [(found, total * prob) for found, prob in cells if total * prob >= 5]
        rest = (total - sum(found for found, _ in large), total - sum(e for _, e in large))
        expected = [*large, rest] if rest[1] >= 5 else large
        statistic += sum((found - e) ** 2 / e for found, e in expected)
        freedom += max(0, len(expected) - 1)
    assert freedom > 10
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    assert float(torch.special.gammaincc(half[0], half[1])) > 1e-4, (statistic, freedom)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_texts_have_the_law_of_the_target(case: tuple[str, str]) -> None:
    """With a drafter that is wrong in many ways."""
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3)).double()
    logits[2, 0] = -torch.inf
    target = toy(order=2)
    run = engine(target, Table(logits), case)
    answers = texts(run, ROWS)
    assert all(0.1 < alpha < 0.9 for alpha in run.stats.alpha)
    for part, setting in enumerate(SETTINGS):
        assert_law(target, setting, answers[16 * part :][:16])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_drafter_that_is_the_target_is_never_refused(case: tuple[str, str]) -> None:
    """So every cycle ends in the bonus behind a leaf, where the commonest bug of the field is."""
    target = toy(order=1)
    run = engine(target, Table(target.table), case)
    answers = texts(run, ROWS)
    assert run.stats.alpha == [1.0] * PLANS[case[1]].depth
    for part, setting in enumerate(SETTINGS):
        assert_law(target, setting, answers[16 * part :][:16])


@pytest.mark.parametrize("case", FIT_A_TOY)
def test_every_drafter_that_can_be_sampled_keeps_the_law(case: str) -> None:
    target = toy(order=2)
    run = engine(target, on_toy(case, target), ("rrs", "static"))
    answers = texts(run, ROWS[:16])
    assert all(0.05 < alpha < 0.95 for alpha in run.stats.alpha)
    assert_law(target, SETTINGS[0], answers)


# Some drafters end early, and ``Guided`` would make their trees deeper: no longer as drawn.
@pytest.mark.parametrize("drafter", [d for d in DRAFTERS if not d.endswith(("/narrow", "swift"))])
@pytest.mark.parametrize("case", [("rrs", "static"), ("block", "chain")], ids="-".join)
def test_greedy_rows_get_the_tokens_of_plain_decoding(case: tuple[str, str], drafter: str) -> None:
    """Beside a row that is sampled."""
    family, rows = world.home(drafter), (0, 1, 2)
    target = world.target(family)
    known = [[*world.prompt(row), *world.truth(family, "greedy", row)] for row in rows]
    guided = Guided(world.make_drafter(drafter, target), [*known, [*world.prompt(3)]], seed=5)
    each = [world.params("greedy", row) for row in rows]
    each.append(SamplingParams(temperature=1.3, seed=0, max_new_tokens=30))
    done = engine(target, guided, case, size=3).generate(
        [list(world.prompt(row)) for row in (*rows, 3)], each
    )
    for row in rows:
        assert done[row].token_ids == list(world.truth(family, "greedy", row))
    assert_cell_proves_something(done[:3])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_row_alone_draws_what_it_draws_in_a_batch(case: tuple[str, str]) -> None:
    target = toy(order=2)
    run = engine(target, Table(target.table[0]), case, size=3)
    rows = [(setting, seed) for seed in range(2) for setting in (*SETTINGS, SamplingParams())]
    together = texts(run, rows, size=30)
    assert [texts(run, [row], size=30)[0] for row in rows] == together
    assert together[0] != together[3], "another seed is another text"


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_without_a_draft_the_text_is_that_of_plain_sampling(case: tuple[str, str]) -> None:
    target = toy(order=2)
    plain = Engine(target, NoDrafter(), RULES["match"], max_batch_size=32)
    run = engine(target, NoDrafter(), case)
    assert texts(run, ROWS[:4], size=20) == texts(plain, ROWS[:4], size=20)
