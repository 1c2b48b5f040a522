"""Rules: what of a tree is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jakiro.errors import UnknownName
from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify.match import match

RuleFunction = Callable[[TokenTree, NodeView], Verdict]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and what it promises: ``exact`` (the same tokens as plain decoding with that seed),
    ``in_law`` (greedy equality, the same distribution when sampling) or ``lossy``."""

    name: str
    promise: Literal["exact", "in_law", "lossy"]
    function: RuleFunction


RULES = {rule.name: rule for rule in (Rule("match", "exact", match),)}


def find(name: str) -> Rule:
    """The rule called ``name``; ``UnknownName`` if there is none."""
    if name not in RULES:
        raise UnknownName("rule", name, list(RULES))
    return RULES[name]
