"""Scalar rules, and the exact law of anything that draws.

A *program* is a function that draws with ``pick(probs) -> index`` and returns what it emitted.
``law`` runs it along every branch and adds up the probabilities: no sampling error, so two laws are
the same or they are not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

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


def with_replacement(pick: Pick, law: Probs, count: int) -> list[int]:
    """``count`` independent draws from ``law``."""
    return [pick(law) for _ in range(count)]


def best_and_one(pick: Pick, law: Probs, count: int) -> list[int]:
    """The ``count - 1`` most probable tokens, and one drawn from the rest if there is one."""
    ranked = sorted((x for x, p in enumerate(law) if p > 0), key=lambda x: -law[x])
    listed = ranked[: count - 1]
    rest = [0.0 if x in listed else p for x, p in enumerate(law)]
    return [*listed, pick(normalised(rest))] if sum(rest) > 0 else listed


def first_paths(
    pick: Pick, law_at: Callable[[Text], Probs], depth: int, width: int
) -> list[list[tuple[Text, int]]]:
    """Stochastic beam search without its noise: of each level the first ``width`` prefixes that
    appear when whole paths are drawn without replacement, with the place of each one's parent in
    the level above. A path that shows no prefix that is still wanted is not drawn."""
    paths: dict[Text, float] = {(): 1.0}
    for _ in range(depth):
        paths = {
            (*path, x): weight * p
            for path, weight in paths.items()
            for x, p in enumerate(law_at(path))
            if p > 0
        }
    levels: list[list[Text]] = [[] for _ in range(depth + 1)]
    levels[0] = [()]
    while True:
        wanted = [d for d in range(1, depth + 1) if len(levels[d]) < width]
        useful = [path for path in paths if any(path[:d] not in levels[d] for d in wanted)]
        if not useful:
            break
        drawn = useful[pick(normalised([paths[path] for path in useful]))]
        for d in wanted:
            if drawn[:d] not in levels[d]:
                levels[d].append(drawn[:d])
    return [[(path, levels[d].index(path[:-1])) for path in levels[d + 1]] for d in range(depth)]


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


def texts_of(tokens: Sequence[int], parents: Sequence[int]) -> list[Text]:
    """The tokens from the root to each node."""
    texts: list[Text] = [(tokens[0],)]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        texts.append((*texts[parent], token))
    return texts


def line_of(node: int, parents: Sequence[int]) -> list[int]:
    """The nodes from the root to ``node``."""
    return [0] if node == 0 else [*line_of(parents[node], parents), node]


def multi_round(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    laws: tuple[LawAt, LawAt],
    draws: tuple[Accept, Draw],
) -> tuple[list[int], int]:
    """Try independent candidates one after the other: the children of all nodes of one text."""
    (target_at, draft_at), (accept, draw) = laws, draws
    texts, here = texts_of(tokens, parents), 0
    while True:
        target = target_at(here)
        for child in below(texts[here], texts, valid):
            token, draft = tokens[child], draft_at(parents[child])
            if accept(child, ratio(target[token], draft[token])):
                here = child
                break
            target, _ = rejected(target, draft, token)
        else:
            return line_of(here, parents), draw(here, target)


def below(text: Text, texts: Sequence[Text], valid: Sequence[bool]) -> list[int]:
    """The valid nodes whose text is ``text`` and one token."""
    return [i for i in range(1, len(texts)) if valid[i] and texts[i][:-1] == text]


def kseq(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    laws: tuple[LawAt, LawAt],
    draws: tuple[Accept, Draw],
) -> tuple[list[int], int]:
    """Independent candidates that all have the same chance."""
    (target_at, draft_at), (accept, draw) = laws, draws
    texts, here = texts_of(tokens, parents), 0
    while True:
        target, candidates = target_at(here), below(texts[here], texts, valid)
        if not candidates:
            return line_of(here, parents), draw(here, target)
        draft, count = draft_at(parents[candidates[0]]), len(candidates)
        rho = smallest_rho(tuple(target), tuple(draft), count)
        for child in candidates:
            token = tokens[child]
            if accept(child, ratio(target[token] / rho, draft[token])):
                here = child
                break
        else:
            shares = [min(q, p / rho) for p, q in zip(target, draft, strict=True)]
            rounds = sum((1 - sum(shares)) ** i for i in range(count))
            rest = [max(0.0, p - rounds * x) for p, x in zip(target, shares, strict=True)]
            rest = normalised(rest) if sum(rest) > 0 else list(target)
            return line_of(here, parents), draw(here, rest)


@cache
def smallest_rho(target: tuple[float, ...], draft: tuple[float, ...], count: int) -> float:
    """The least number in [1, count] that no token's chance of acceptance, over its probability,
    exceeds."""

    def is_enough(rho: float) -> bool:
        missed = 1 - sum(min(q, p / rho) for p, q in zip(target, draft, strict=True))
        return sum(missed**i for i in range(count)) <= rho

    low, high = 1.0, float(count)
    if is_enough(low):
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def hybrid(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    laws: tuple[LawAt, LawAt],
    draws: tuple[Accept, Draw],
) -> tuple[list[int], int]:
    """The last child was drawn from what the others leave of the draft; it is tried first."""
    (target_at, draft_at), (accept, draw) = laws, draws
    path = [0]
    while True:
        here = path[-1]
        target, children = target_at(here), [i for i in range(len(tokens)) if parents[i] == here]
        listed = {tokens[child]: child for child in children[:-1] if valid[child]}
        if children and valid[children[-1]]:
            one = children[-1]
            rest = [0.0 if x in listed else q for x, q in enumerate(draft_at(here))]
            draft = normalised(rest) if sum(rest) > 0 else rest
            if accept(one, ratio(target[tokens[one]], draft[tokens[one]])):
                path.append(one)
                continue
            target, _ = rejected(target, draft, tokens[one])
        token = draw(here, target)
        if token not in listed:
            return path, token
        path.append(listed[token])


def traversal(
    tokens: Sequence[int],
    parents: Sequence[int],
    valid: Sequence[bool],
    laws: tuple[LawAt, LawAt],
    draws: tuple[Accept, Draw],
) -> tuple[list[int], int]:
    """A node is accepted if one of its children is, or, weighed by what they have left, itself."""
    (target_at, draft_at), (accept, draw) = laws, draws

    def visit(node: int, weight: float) -> tuple[list[int], int] | None:
        children = [i for i in range(1, len(tokens)) if parents[i] == node and valid[i]]
        target = target_at(node)
        draft = draft_at(node) if children else []
        for child in children:
            p, q = target[tokens[child]], draft[tokens[child]]
            found = visit(child, min(1.0, weight * uncut(p, q)) if weight > 0 else 0.0)
            if found is not None:
                return [node, *found[0]], found[1]
            left = [max(0.0, weight * p - q) for p, q in zip(target, draft, strict=True)]
            _, draft = rejected(target, draft, tokens[child])
            target = normalised(left) if sum(left) > 0 else target
            if node:
                weight = sum(left) / (sum(left) + 1 - weight) if sum(left) > 0 else 0.0
        if node == 0 or accept(node, weight):
            return [node], draw(node, target)
        return None

    found = visit(0, 1.0)
    assert found is not None, "the root is always accepted"
    return found


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
