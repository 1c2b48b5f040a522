"""Scalar rules, and the exact law of anything that draws.

A *program* is a function that draws with ``pick(probs) -> index`` and returns what it emitted.
``law`` runs it along every branch and adds up the probabilities: no sampling error, so two laws are
the same or they are not.
"""

from __future__ import annotations

import math
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


# -- rules for sampled drafts ------------------------------------------------------------------

Probs = Sequence[float]
LawAt = Callable[[int], Probs]
"""A law at a node: of the target's next token, or of what the children were drawn from."""
Accept = Callable[[int, float], bool]
"""Throw the coin of a node that shows True with the given probability."""
Draw = Callable[[int, Probs], int]
"""Draw the token that follows a node."""


def normalised(weights: Probs) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


def rejected(target: Probs, draft: Probs, token: int) -> tuple[Probs, Probs]:
    """Both laws after ``token``, drawn from ``draft``, was refused."""
    excess = [max(0.0, p - q) for p, q in zip(target, draft, strict=True)]
    target = normalised(excess) if sum(excess) > 0 else target
    draft = [0.0 if x == token else q for x, q in enumerate(draft)]
    return target, normalised(draft) if sum(draft) > 0 else draft


def without_replacement(pick: Pick, law: Probs, count: int) -> list[int]:
    """Up to ``count`` successive draws from ``law``, each token once."""
    drawn: list[int] = []
    while len(drawn) < count and sum(law) > 0:
        drawn.append(pick(normalised(law)))
        law = [0.0 if x == drawn[-1] else p for x, p in enumerate(law)]
    return drawn


def recursive_rejection(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    laws: tuple[LawAt, LawAt],
    draws: tuple[Accept, Draw],
) -> tuple[list[int], int]:
    """Try siblings in their order, each by the law it was drawn from; ``laws`` are the target's
    and the draft's. Returns the path and the bonus, as ``walk`` does."""
    (target_at, draft_at), (accept, draw) = laws, draws
    path = [0]
    while True:
        here = path[-1]
        children = [i for i in range(1, len(tokens)) if parents[i] == here and valid[i]]
        target = target_at(here)
        draft = draft_at(here) if children else []
        for child in children:
            token = tokens[child]
            if accept(child, ratio(target[token], draft[token])):
                path.append(child)
                break
            target, draft = rejected(target, draft, token)
        else:
            return path, draw(here, target)


def ratio(target: float, draft: float) -> float:
    """The probability of a token over that of its draft, at most 1."""
    return min(1.0, target / draft) if draft > 0 else float(target > 0)


def block(
    tokens: Sequence[int], laws: tuple[LawAt, LawAt], draws: tuple[Accept, Draw]
) -> tuple[list[int], int]:
    """A whole chain: the longest prefix whose coin shows True, or none."""
    (target_at, draft_at), (accept, draw) = laws, draws
    last, weight, kept = len(tokens) - 1, 1.0, 0
    residuals: list[Probs] = []
    for node in range(last + 1):
        if node:
            token = tokens[node]
            step = uncut(target_at(node - 1)[token], draft_at(node - 1)[token])
            weight = min(1.0, weight * step) if weight > 0 else 0.0
        if node == last:
            passes = weight
        else:
            both = zip(target_at(node), draft_at(node), strict=True)
            residuals.append([max(0.0, weight * p - q) for p, q in both])
            mass = sum(residuals[-1])
            passes = mass / (mass + 1 - weight) if mass > 0 else 0.0
        if node and accept(node, passes):
            kept = node
    path = list(range(kept + 1))
    if kept == last or sum(residuals[kept]) == 0:
        return path, draw(kept, target_at(kept))
    return path, draw(kept, normalised(residuals[kept]))


def uncut(target: float, draft: float) -> float:
    return target / draft if draft > 0 else math.inf if target > 0 else 0.0


def typical(
    tokens: Sequence[int], parents: Sequence[int], valid: Sequence[bool], target_at: LawAt
) -> list[int]:
    """The path of the deepest node all of whose tokens are typical, by the published formula; of
    equally deep ones the likeliest, of equally likely ones the first."""
    lines: dict[int, tuple[list[int], float]] = {0: ([0], 0.0)}
    for node in range(1, len(tokens)):
        if not valid[node] or parents[node] not in lines:
            continue
        law = target_at(parents[node])
        entropy = -sum(p * math.log(p) for p in law if p > 0)
        if law[tokens[node]] > min(0.09, 0.3 * math.exp(-entropy)):
            path, score = lines[parents[node]]
            lines[node] = ([*path, node], score + math.log(law[tokens[node]]))
    longest = max(len(path) for path, _ in lines.values())
    best = max(score for path, score in lines.values() if len(path) == longest)
    return next(p for p, score in lines.values() if len(p) == longest and score >= best - 1e-12)
