"""Rules: what of a tree is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jakiro.errors import ConfigError, UnknownName
from jakiro.sampling.draws import BestAndOne, DraftDraws, WithoutReplacement, WithReplacement
from jakiro.sampling.process import NodeView
from jakiro.tree.shapes import KINDS, Kind, TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.block import block
from jakiro.verify.hybrid import hybrid
from jakiro.verify.kseq import kseq
from jakiro.verify.match import match
from jakiro.verify.rejection import multi_round, recursive_rejection
from jakiro.verify.traversal import traversal
from jakiro.verify.typical import typical

RuleFunction = Callable[[TokenTree, NodeView], Verdict]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, what it promises and what it asks of a draft.

    ``promise``: ``exact`` (the same tokens as plain decoding with that seed), ``in_law`` (greedy
    equality, the same distribution when sampling) or ``lossy``. ``trees``: the kinds of plan it
    takes. ``draws``: how their nodes must be drawn, from a law that the tree carries, and then no
    node may be dropped because of what was drawn; None: any list of candidates will do.
    """

    name: str
    promise: Literal["exact", "in_law", "lossy"]
    function: RuleFunction
    trees: tuple[Kind, ...] = KINDS
    draws: type[DraftDraws] | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether its trees are drawn."""
        return self.draws is not None

    @property
    def nodes(self) -> str:
        """How the nodes of its trees must have come about, in words."""
        return "any candidates" if self.draws is None else self.draws.words

    def check(self, plan: TreePlan, drafter: str, can_sample: bool) -> None:
        """Raise ``ConfigError`` if drafts of ``plan`` by ``drafter`` break the rule's contract."""
        if plan.kind not in self.trees or (self.is_sampled and not plan.is_whole):
            forms = " or ".join(_FORMS[kind] for kind in self.trees)
            raise ConfigError(
                f"the rule {self.name} takes {' and '.join(self.trees)} trees that no score "
                f"cuts and that leave out no rank, and the plan is {plan.kind} with {plan.budget} "
                f"nodes ({plan}); give the tree {forms}, or use the rule match"
            )
        if self.is_sampled and not can_sample:
            raise ConfigError(
                f"the rule {self.name} needs drafts drawn from a law, and the drafter {drafter} "
                "lists candidates; use the rule match, or a drafter that scores a vocabulary"
            )


_FORMS: dict[Kind, str] = {
    "chain": "chain:DEPTH",
    "static": "static:FANxFANx..",
    "beam": "beam:DEPTH,WIDTH",
}
_SHAPED: tuple[Kind, ...] = ("chain", "static")
RULES = {
    rule.name: rule
    for rule in (
        Rule("match", "exact", match),
        Rule("token", "in_law", recursive_rejection, ("chain",), WithoutReplacement),
        Rule("block", "in_law", block, ("chain",), WithoutReplacement),
        Rule("rrs", "in_law", recursive_rejection, (*_SHAPED, "beam"), WithoutReplacement),
        Rule("traversal", "in_law", traversal, (*_SHAPED, "beam"), WithoutReplacement),
        Rule("multi_round", "in_law", multi_round, _SHAPED, WithReplacement),
        Rule("kseq", "in_law", kseq, _SHAPED, WithReplacement),
        Rule("hybrid", "in_law", hybrid, _SHAPED, BestAndOne),
        Rule("typical_lossy", "lossy", typical),
    )
}


def find(name: str) -> Rule:
    """The rule called ``name``; ``UnknownName`` if there is none."""
    if name not in RULES:
        raise UnknownName("rule", name, list(RULES))
    return RULES[name]
