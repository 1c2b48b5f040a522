"""A rule that is given a tree which breaks its contract says so when the engine is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jakiro.drafters.automata import CorpusAutomaton
from jakiro.drafters.base import Drafter
from jakiro.drafters.lookahead import Lookahead
from jakiro.drafters.none import NoDrafter
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.drafters.suffix_automaton import SuffixAutomaton
from jakiro.drafters.token_recycling import Adjacency, TokenRecycling
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, PairMismatch
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import Sampler
from jakiro.target.output import TargetOutput
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import EAGLE1_PATHS, TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.verify import RULES
from tests.conformance.doubles import OnAndOff, Table

TOY = ToyTarget.random(6)
CHAIN, STATIC, DYNAMIC = TreePlan.chain(3), TreePlan.static(EAGLE1_PATHS), TreePlan()
BEAM = TreePlan.beam(3, 4)
PLANS = (CHAIN, STATIC, BEAM, DYNAMIC)
TAKEN = {
    "match": PLANS,
    "token": (CHAIN,),
    "block": (CHAIN,),
    "rrs": (CHAIN, STATIC, BEAM),
    "traversal": (CHAIN, STATIC, BEAM),
    "multi_round": (CHAIN, STATIC),
    "kseq": (CHAIN, STATIC),
    "hybrid": (CHAIN, STATIC),
    "typical_lossy": PLANS,
}
CUT = (
    TreePlan("chain", depth=3, width=1, budget=2),
    TreePlan("chain", depth=3, width=4, budget=12),
    TreePlan("static", STATIC.depth, STATIC.width, 9, EAGLE1_PATHS),
    TreePlan("beam", depth=3, width=4, budget=11),
    TreePlan.parse("static:0,2"),
    TreePlan.parse("static:0,0.1"),
)
"""Plans that drop some of the nodes they make, by score or by rank."""


def build(rule: str, plan: TreePlan, drafter: Drafter | None = None) -> Engine:
    return Engine(TOY, drafter or Table(torch.zeros(6, 6)), RULES[rule], plan=plan)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kind)
@pytest.mark.parametrize("rule", RULES)
def test_the_table_of_rules_and_trees(rule: str, plan: TreePlan) -> None:
    if plan in TAKEN[rule]:
        assert build(rule, plan).plan == plan
        return
    with pytest.raises(
        ConfigError, match=f"the rule {rule} takes .* the plan is {plan.kind}.*match"
    ):
        build(rule, plan)


@pytest.mark.parametrize("plan", CUT, ids=range(len(CUT)))
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.is_sampled])
def test_a_tree_that_is_cut_by_score_is_refused(rule: str, plan: TreePlan) -> None:
    with pytest.raises(ConfigError, match="no score cuts and that leave out no rank"):
        build(rule, plan)
    assert build("match", plan).plan == plan


@pytest.mark.parametrize("rule", RULES)
def test_a_list_of_candidates_is_no_draw(rule: str) -> None:
    if RULES[rule].is_sampled:
        with pytest.raises(ConfigError, match="the drafter prompt_lookup lists candidates"):
            build(rule, CHAIN, PromptLookup())
    else:
        build(rule, CHAIN, PromptLookup())
    Engine(TOY, NoDrafter(), RULES[rule])


@pytest.mark.parametrize("is_below", [False, True])
def test_a_drafter_works_for_one_engine_at_a_time(is_below: bool) -> None:
    """Below an arbiter too, in either of the engines."""
    shared = Table(torch.randn(6, 6))
    over = SuffixAutomaton(shared) if is_below else shared
    one, other = build("match", CHAIN, shared), build("match", STATIC, over)
    params = SamplingParams(max_new_tokens=9)
    (expected,) = one.generate([[1]], params)
    request = one.submit([1], params)
    one.step()
    with pytest.raises(ConfigError, match=r"another engine has answers in flight .*table"):
        other.generate([[1]], params)
    while request.finish_reason is None:
        one.step()
    (again,) = other.generate([[1]], params)
    assert request.token_ids == again.token_ids == expected.token_ids


def test_while_drafting_is_off_nothing_is_fed_besides_the_roots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fed: list[int] = []
    target, verify = ToyTarget.random(6), ToyTarget.verify

    def counted(self: ToyTarget, tree: TokenTree, *rest: Any) -> TargetOutput:
        fed.append(tree.num_nodes)
        return verify(self, tree, *rest)

    monkeypatch.setattr(ToyTarget, "verify", counted)
    # The window of lookahead decoding is fed whether or not it has a guess.
    drafter = Lookahead(ngram=3, window=4)
    turns = OnAndOff.of([None, drafter.plan])
    engine = Engine(target, drafter, RULES["match"], policy=turns)
    engine.generate([[1, 2, 3]], SamplingParams(max_new_tokens=12, ignore_eos=True))
    assert set(fed[::2]) == {1} and min(fed[1::2]) > 1


def test_what_a_drafter_knows_beforehand_fits_the_vocabulary() -> None:
    def corpus(last: int) -> SuffixAutomaton:
        return SuffixAutomaton(corpus=CorpusAutomaton.of([[1, 2, last]]))

    def matrix(last: int) -> TokenRecycling:
        known = Adjacency()
        known.put(1, [last, 2])
        known.put(2, [])
        return TokenRecycling(matrix=known)

    for make in (corpus, matrix, lambda last: SuffixAutomaton(matrix(last))):
        build("match", DYNAMIC, make(5))
        with pytest.raises(PairMismatch, match=r"knows texts with token 6, .* tokens below 6"):
            build("match", DYNAMIC, make(6))


def test_a_draft_that_is_drawn_cannot_lean_to_another_noise() -> None:
    noise = Sampler(6, torch.device("cpu"))
    with pytest.raises(ConfigError, match="noise_aware"):
        Engine(TOY, Table(torch.zeros(6, 6)), RULES["rrs"], plan=CHAIN, noise=noise)
