"""Rules that keep the law and not the tokens: greedy equality, and the law of whole engines.

The toy target looks at its last two tokens, so the tokens that follow each pair in a long text are
independent draws from one known law, whatever cycle, node or bonus they came from. A chi-square
test of pairs of successive tokens compares them, at settings where temperature and both filters
bite. All seeds are fixed: the verdict is the same in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.drafters.feature import FeatureDrafter
from jakiro.drafters.levels import LevelDrafter
from jakiro.drafters.none import NoDrafter
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError
from jakiro.sampling.draws import WithoutReplacement
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import Sampler
from jakiro.target.target import Target
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.verify import RULES
from tests.conformance import world
from tests.conformance.doubles import Table
from tests.conformance.guided import Guided
from tests.conformance.test_identity import assert_cell_proves_something
from tests.oracles.plain import KeyedGumbel, Settings, processors_of

VOCAB, SIZE = 4, 160
PLANS = {
    "chain": TreePlan.chain(3),
    "static": world.TREES["static"],
    "beam": TreePlan.beam(3, 3),
    "even": TreePlan.branching((3, 2, 1)),
}
SAMPLED = [rule for rule in RULES.values() if rule.is_sampled]
CASES = [
    (rule.name, kind)
    for rule in SAMPLED
    for kind in rule.trees
    if kind != "chain" or rule.trees == ("chain",)
]
"""Every rule on every kind of tree; on chains those that take nothing else, as the others do there
what one of those does."""
FUNCTIONS = list({RULES[name].function: (name, kind) for name, kind in CASES}.values())
SETTINGS = (
    SamplingParams(temperature=0.6, top_k=3, top_p=0.9),
    SamplingParams(temperature=1.4, min_p=0.05),
)
WARM = SamplingParams(temperature=2.0, top_k=3, top_p=0.95)
ROWS = [(setting, seed) for setting in SETTINGS for seed in range(16)]


def drafters() -> list[str]:
    """Those that can be sampled; ``none`` has nothing to sample."""
    cases = [case for case in world.kinds() if case != "none"]
    homes = {case: world.target(world.home(case)) for case in cases}
    return [case for case in cases if world.make_drafter(case, homes[case]).can_sample]


def toy(order: int) -> ToyTarget:
    target = ToyTarget.random(VOCAB, order, seed=1, context_length=512)
    target.table *= 0.4
    return target


def on_toy(case: str, target: ToyTarget) -> Drafter:
    """The drafter ``case`` of a toy; a draft model is another toy, and so is any view of it."""
    if case == VIEW:
        return SelfDrafter(toy(1), confidence=0.5)
    name, _, size = case.partition("/")
    entry = registry.find(name)
    made: dict[str, Callable[[], list[Any]]] = {
        "nothing": list,
        "head": lambda: [world.head(target, name, size, std=0.4)],
        "model": lambda: [toy(1)],
        "model_head": lambda: [world.head(toy(1), name, size, std=0.4), toy(1)],
    }
    parts = made[entry.made_of]()
    drafter: Drafter = entry.load()(*parts, *([target] if parts else []))
    return drafter


def fits_a_toy(case: str) -> bool:
    """A toy has no layers to view otherwise."""
    try:
        on_toy(case, toy(1))
    except ConfigError:
        return False
    return True


def going_on(drafter: Drafter) -> Drafter:
    """Ends no row early: in the levels of a beam nothing can be planted below such a row."""
    if isinstance(drafter, LevelDrafter):
        drafter.confidence = 0.0
    return drafter


VIEW = SelfDrafter.name
DRAFTERS = drafters()
FIT_A_TOY = [
    case
    for case in (*DRAFTERS, VIEW)
    if not case.endswith("/narrow") and case not in world.view_cases() and fits_a_toy(case)
]
MIXTURES = {"jakiro/decoupled": 2, "jakiro/frequent": 1, "jakiro_star/wide": 1}
"""Drawn from the mixture of the experts' laws: of all tokens, of some, and of heads that otherwise
let their experts propose in turn. With a token after which their experts differ."""


SHAPED = [(name, kind) for name, kind in CASES if kind != "chain"]


def in_turn(drafters: list[str], cases: list[tuple[str, str]]) -> list[tuple[str, tuple[str, str]]]:
    """Every drafter with one of the cases; with so many drafters every case comes up."""
    return list(zip(drafters, cycle(cases), strict=False))


def engine(target: Target, drafter: Drafter, case: tuple[str, str], size: int = 32) -> Engine:
    rule, kind = case
    return Engine(target, drafter, RULES[rule], plan=PLANS[kind], max_batch_size=size)


def texts(of: Engine, rows: list[tuple[SamplingParams, int]], size: int = SIZE) -> list[list[int]]:
    each = [replace(setting, seed=seed, max_new_tokens=size) for setting, seed in rows]
    return [[2, 1, *done.token_ids] for done in of.generate([[2, 1]] * len(rows), each)]


def processed(target: ToyTarget, context: tuple[int, ...], params: SamplingParams) -> list[float]:
    """The law of what follows ``context``, by ``transformers``."""
    return law_of(target.table[context][None], context, params)


def law_of(scores: Tensor, context: tuple[int, ...], params: SamplingParams) -> list[float]:
    """What ``params`` make of ``scores`` [1, V] after ``context``, by ``transformers``."""
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
    assert all(0.05 < alpha < 0.95 for alpha in run.stats.alpha)
    for part, setting in enumerate(SETTINGS):
        assert_law(target, setting, answers[16 * part :][:16])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_drafter_that_is_the_target_is_never_refused(case: tuple[str, str]) -> None:
    """So every cycle ends in the bonus behind a leaf, where the commonest bug of the field is."""
    target = toy(order=1)
    name, kind = case
    # Whichever child is accepted, there are levels below it.
    kind = kind if kind != "static" else "even"
    run = engine(target, Table(target.table), (name, kind))
    answers = texts(run, ROWS, size=120)
    assert run.stats.alpha == pytest.approx([1.0] * PLANS[kind].depth)
    for part, setting in enumerate(SETTINGS):
        assert_law(target, setting, answers[16 * part :][:16])


@pytest.mark.parametrize(
    ("case", "way"),
    [*in_turn(FIT_A_TOY, SHAPED), ("jakiro_star/wide", ("token", "chain"))],
    ids=str,
)
def test_every_drafter_that_can_be_sampled_keeps_the_law(case: str, way: tuple[str, str]) -> None:
    target = toy(order=2)
    run = engine(target, on_toy(case, target), way)
    answers = texts(run, ROWS[:16])
    assert all(0.05 < alpha < 0.95 for alpha in run.stats.alpha)
    assert_law(target, SETTINGS[0], answers)


@torch.inference_mode()
@pytest.mark.parametrize("case", MIXTURES)
def test_mixtures_are_drawn_from_their_law(case: str) -> None:
    """Two children of one node in 1500 drafts, against every ordered pair of tokens: whole engines
    would need far longer texts to tell a mixture from one of its experts."""
    target, plan = toy(order=1), TreePlan.static(((0,), (1,), (0, 0)))
    name, _, size = case.partition("/")
    head, params = world.head(target, name, size, std=0.4), WARM
    root, feature, ids = (
        MIXTURES[case],
        0.3 * target.table[None, 3],
        getattr(head, "draft_ids", torch.arange(VOCAB)),
    )
    said = head(target.embed(torch.tensor([[root]])), feature[None], torch.tensor([[0]])).experts
    parts = said.features[0, 0][:, ids].softmax(-1) * said.weights[0, 0, :, None]
    assert (parts[0] / parts[0].sum() - parts[1] / parts[1].sum()).abs().sum() > 0.9
    wide = torch.zeros(1, VOCAB, dtype=torch.float64).index_copy_(1, ids, parts.sum(0)[None])
    law = law_of(wide.log(), (3, root), params)
    expected = torch.tensor(law, dtype=torch.float64)
    sampler, rows, pairs = Sampler(VOCAB, target.device), 300, Counter[tuple[int, ...]]()
    for seed in range(rows):
        sampler.admit(params, [3, root], seed=seed, eos_ids=())
    for _ in range(5):
        drafter, draws = FeatureDrafter(head, target), sampler.sampled_drafts(WithoutReplacement)
        for row in range(rows):
            drafter.begin([3], feature)
            sampler.extend(row, [root])
        roots, caps = torch.full((rows,), root), [plan.depth] * rows
        place = roots, [1] * rows, caps, plan
        tree = drafter.draft(DraftRequest(*place, draws, True, None, draws.choose))
        tree = draws.seal(tree)
        assert tree.laws is not None
        torch.testing.assert_close(tree.laws[0, 0].double(), expected, atol=1e-6, rtol=1e-5)
        pairs.update(map(tuple, tree.tokens[:, 1:3].tolist()))
    cells = [
        (pairs[first, second], 1500 * law[first] * law[second] / (1 - law[first]))
        for first, second in permutations(range(VOCAB), 2)
    ]
    likely = [(found, wanted) for found, wanted in cells if wanted >= 5]
    assert len(likely) == 6 and sum(found for found, _ in likely) == 1500
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in likely)
    assert statistic < 25.7  # 1 in 10 000 at 5 degrees of freedom


def test_the_variants_are_all_there() -> None:
    """What the conformance suite is run for, of the one-layer network."""
    cases = [case for case in world.drafter_cases() if "+" not in case and "/" in case]
    made = [world.make_drafter(case, world.target("llama")) for case in cases]
    heads = [drafter.head.config for drafter in made if isinstance(drafter, FeatureDrafter)]
    assert {head.num_experts for head in heads} == {1, 2, 3, 4, 5}
    assert {head.contrast_levels for head in heads} == {0, 1, 2}
    assert {head.branches for head in heads} == {"sum", "decoupled", "union"}
    assert any(head.active_experts < head.num_experts for head in heads)
    assert any(head.draft_vocab_size for head in heads)
    assert {head.activation for head in heads} == {"swiglu", "gelu"}


# Some drafters end early, and ``Guided`` would make their trees deeper: no longer as drawn.
EARLY = ("/narrow", "swift", "specdec_pp/wide", "sjd/wide")
DEEP = [drafter for drafter in DRAFTERS if not drafter.endswith(EARLY)]


@pytest.mark.parametrize(
    ("drafter", "case"), [*in_turn(DEEP, CASES), *in_turn(DEEP, CASES[::-1])], ids=str
)
def test_greedy_rows_get_the_tokens_of_plain_decoding(drafter: str, case: tuple[str, str]) -> None:
    """Beside a row that is sampled."""
    family, rows = world.home(drafter), (0, 1, 2)
    target = world.target(family)
    known = [[*world.prompt(row), *world.truth(family, "greedy", row)] for row in rows]
    drafts = going_on(world.make_drafter(drafter, target))
    guided = Guided(drafts, [*known, [*world.prompt(3)]], seed=5)
    each = [world.params("greedy", row) for row in rows]
    each.append(SamplingParams(temperature=1.3, seed=0, max_new_tokens=30))
    done = engine(target, guided, case, size=3).generate(
        [list(world.prompt(row)) for row in (*rows, 3)], each
    )
    for row in rows:
        assert done[row].token_ids == list(world.truth(family, "greedy", row))
    assert_cell_proves_something(done[:3])


@pytest.mark.parametrize("case", FUNCTIONS, ids="-".join)
def test_a_row_alone_draws_what_it_draws_in_a_batch(case: tuple[str, str]) -> None:
    target = toy(order=2)
    run = engine(target, Table(target.table[0]), case, size=3)
    rows = [(setting, 0) for setting in (*SETTINGS, SamplingParams())] + [(SETTINGS[0], 1)]
    together = texts(run, rows, size=25)
    assert [texts(run, [row], size=25)[0] for row in rows] == together
    assert together[0] != together[3], "another seed is another text"


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_without_a_draft_the_text_is_that_of_plain_sampling(case: tuple[str, str]) -> None:
    target = toy(order=2)
    plain = Engine(target, NoDrafter(), RULES["match"], max_batch_size=32)
    run = engine(target, NoDrafter(), case)
    assert texts(run, ROWS[:4], size=20) == texts(plain, ROWS[:4], size=20)
