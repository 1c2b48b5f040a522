"""Scalar rules, and the exact law of anything that draws.

A *program* is a function that draws with ``pick(probs) -> index`` and returns what it emitted.
``law`` runs it along every branch and adds up the probabilities: no sampling error, so two laws are
the same or they are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

Pick = Callable[[Sequence[float]], int]
Text = tuple[int, ...]
Law = dict[Text, float]


class Branch:
    """One run of a program: the draws of ``script`` first, then the first possible outcomes."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.siblings: list[list[int]] = []
        self.num_drawn = 0
        self.weight = 1.0

    def pick(self, probs: Sequence[float]) -> int:
        if self.num_drawn == len(self.script):
            support = [index for index, prob in enumerate(probs) if prob > 0]
            self.siblings.extend([*self.script, index] for index in support[1:])
            self.script = [*self.script, support[0]]
        drawn = self.script[self.num_drawn]
        self.num_drawn += 1
        self.weight *= probs[drawn]
        return drawn


def law(program: Callable[[Pick], Text]) -> Law:
    """The probability of every outcome of ``program``, by depth-first replay of its draws."""
    outcomes: Law = defaultdict(float)
    scripts: list[list[int]] = [[]]
    while scripts:
        branch = Branch(scripts.pop())
        outcomes[program(branch.pick)] += branch.weight
        scripts.extend(branch.siblings)
    return dict(outcomes)


def total_variation(left: Law, right: Law) -> float:
    """Half the summed difference: 0 for equal laws, 1 for disjoint ones."""
    outcomes = {*left, *right}
    return sum(abs(left.get(text, 0.0) - right.get(text, 0.0)) for text in outcomes) / 2


def walk(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    choose: Callable[[int], int],
) -> tuple[list[int], int]:
    """Follow the child that carries the target's choice; where there is none, emit the choice.

    ``choose(node)`` is called once for every node on the way. Returns the nodes of the path, root
    first, and the bonus token.
    """
    path = [0]
    while True:
        token = choose(path[-1])
        matching = [
            node
            for node in range(1, len(tokens))
            if parents[node] == path[-1] and valid[node] and tokens[node] == token
        ]
        if not matching:
            return path, token
        path.append(matching[0])
