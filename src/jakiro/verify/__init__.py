"""Rules: what of a tree is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jakiro.errors import ConfigError, UnknownName
from jakiro.sampling.process import NodeView
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.block import block
from jakiro.verify.match import match
from jakiro.verify.rejection import recursive_rejection
from jakiro.verify.typical import typical

RuleFunction = Callable[[TokenTree, NodeView], Verdict]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, what it promises and what it asks of a draft.

    ``promise``: ``exact`` (the same tokens as plain decoding with that seed), ``in_law`` (greedy
    equality, the same distribution when sampling) or ``lossy``. ``trees``: the kinds of plan it
    takes. ``is_sampled``: their nodes must be drawn from a law that the tree carries, and no node
    may be dropped because of what was drawn; else any list of candidates will do.
    """

    name: str
    promise: Literal["exact", "in_law", "lossy"]
    function: RuleFunction
    trees: tuple[str, ...] = ("chain", "static", "dynamic")
    is_sampled: bool = False

    def check(self, plan: TreePlan, drafter: str, can_sample: bool) -> None:
        """Raise ``ConfigError`` if drafts of ``plan`` by ``drafter`` break the rule's contract."""
        if plan.kind not in self.trees or (self.is_sampled and not _is_shaped(plan)):
            forms = {"chain": "chain:DEPTH", "static": "static:eagle1"}
            raise ConfigError(
                f"the rule {self.name} takes {' and '.join(self.trees)} trees that no score "
                f"cuts, and the plan is {plan.kind} with {plan.budget} nodes; give the tree "
                f"{' or '.join(forms[kind] for kind in self.trees)}, or use the rule match"
            )
        if self.is_sampled and not can_sample:
            raise ConfigError(
                f"the rule {self.name} needs drafts drawn from a law, and the drafter {drafter} "
                "lists candidates; use the rule match, or a drafter that scores a vocabulary"
            )


def _is_shaped(plan: TreePlan) -> bool:
    """Whether the tokens of a draft have no say in which nodes there are."""
    if plan.kind == "static":
        return plan.budget >= len(plan.paths)
    return plan.kind == "chain" and plan.width == 1 and plan.budget >= plan.depth


_SHAPED = ("chain", "static")
RULES = {
    rule.name: rule
    for rule in (
        Rule("match", "exact", match),
        Rule("token", "in_law", recursive_rejection, ("chain",), is_sampled=True),
        Rule("rrs", "in_law", recursive_rejection, _SHAPED, is_sampled=True),
        Rule("block", "in_law", block, ("chain",), is_sampled=True),
        Rule("typical_lossy", "lossy", typical),
    )
}


def find(name: str) -> Rule:
    """The rule called ``name``; ``UnknownName`` if there is none."""
    if name not in RULES:
        raise UnknownName("rule", name, list(RULES))
    return RULES[name]
