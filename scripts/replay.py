"""How near does the controller come to the best fixed tree? On a clock that is made up.

    python -m scripts.replay --task EVAL --out docs/benchmarks/replay.json

Wall clocks scatter by more than is looked for, so here only texts, drafts, costs and choices are
real. The target writes its plain answers once, and at every position the drafter's whole tree is
noted. Then these texts are played again and again: the controller, or a fixed tree, says how much
is drafted; the noted tree says what that would have been and what of it the answer goes on with;
measured costs say what the cycle takes. What counts is that time; the controller is shown it with
noise: 5 % each cycle, every fiftieth 1.8 times as long, and a drift of 8 % over some thirty cycles.

Of its costs the controller knows what it is given at load, tables for 1, 2 and the most rows;
cycles take what tables for 1, 2, 4, 8 and 16 say. The contrast is left out, as its level depends on
which one is the last, and parts of a tree could not be told from the whole. A cell is a task at one
temperature, alone or all prompts in one batch, played ``ROUNDS`` times in a row by a new
controller, its start included.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

import jakiro
from jakiro.bench.environment import environment
from jakiro.bench.workloads import RandomTokens, Task, TaskPrompt, load_tasks
from jakiro.drafters.base import DraftRequest
from jakiro.engine.budget import Controller
from jakiro.engine.calibrate import measure
from jakiro.engine.costs import Costs
from jakiro.engine.engine import Engine
from jakiro.engine.policy import DraftLimits, Fixed, Policy, Times
from jakiro.hub.files import replace_files
from jakiro.sampling.params import SamplingParams
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

BATCH, ROUNDS, SEEDS, NEW = 16, 3, 3, 96
BATCHES = (1, 2, 4, 8, BATCH)
"""Numbers of rows that cycles are timed by."""
DEPTHS, BUDGETS = (2, 4, 12), (4, 8, 12)
NOISE, DRIFT, DRIFT_MEMORY = 0.05, 0.08, 0.97
STALL, STALLS = 1.8, 0.02


class Part(NamedTuple):
    """What a draft of a part of the plan would have been, if no level of the others ends it."""

    depths: list[int]
    """Of the nodes without root, in the order of their making."""
    parents: list[int]
    """Their places in these lists; -1 is the root."""
    scores: list[float]
    tokens: list[int]
    reached: list[float]
    """Per level the chance that the text goes through a node of it that would be expanded."""
    is_beaten: list[bool]
    """Per level whether none of its nodes could bring one that is kept."""


@dataclass(frozen=True)
class Place:
    """A position of a text: the whole tree, each node with all its children, and the tokens that
    the text goes on with."""

    depths: list[int]
    parents: list[int]
    scores: list[float]
    tokens: list[int]
    ahead: list[int]

    def part(self, plan: TreePlan) -> Part:
        """Narrower levels have fewer parents, and each parent fewer children."""
        expanded, kept, reached, beaten = {-1}, [], [], []
        num_children: dict[int, int] = {}
        for level in range(1, plan.depth + 1):
            made = []
            for node in (i for i, depth in enumerate(self.depths) if depth == level):
                above = self.parents[node]
                if above in expanded and num_children.get(above, 0) < plan.width:
                    num_children[above] = num_children.get(above, 0) + 1
                    made.append(node)
            kept += made
            best = sorted(made, key=lambda node: -self.scores[node])[: plan.width]
            expanded |= {*best}
            reached.append(sum(math.exp(self.scores[node]) for node in best))
            ranked = sorted((self.scores[node] for node in kept), reverse=True)
            bar = ranked[plan.budget - 1] if len(ranked) >= plan.budget else -math.inf
            # Near the end of a text there is nothing as deep, which is worth nothing.
            beaten.append(not best or self.scores[best[0]] <= bar)
        new = {node: place for place, node in enumerate(kept)} | {-1: -1}
        columns = (self.depths, [new.get(above, -1) for above in self.parents])
        depths, parents = ([column[node] for node in kept] for column in columns)
        scores, tokens = ([column[node] for node in kept] for column in (self.scores, self.tokens))
        return Part(depths, parents, scores, tokens, reached, beaten)


class Text:
    """An answer, place by place; parts of its drafts are made once."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self._parts: dict[tuple[int, TreePlan], Part] = {}

    def part(self, place: int, plan: TreePlan) -> Part:
        if (place, plan) not in self._parts:
            self._parts[place, plan] = self.places[place].part(plan)
        return self._parts[place, plan]


def drafted(
    texts: Sequence[tuple[Text, int]], plan: TreePlan, caps: list[int]
) -> tuple[TokenTree, int]:
    """The tree that would have been drafted for rows at these places of their texts, and how many
    levels would have been made for it."""
    parts = [text.part(place, plan) for text, place in texts]
    depth = last = min(plan.depth, max(caps))
    for level in range(1, depth):
        reached = sum(part.reached[level - 1] for part in parts) / len(parts)
        if reached < plan.reach or all(part.is_beaten[level - 1] for part in parts):
            last = level
            break
    rows = []
    for part, cap in zip(parts, caps, strict=True):
        nodes = [i for i, depth in enumerate(part.depths) if depth <= min(last, cap)]
        nodes = sorted(sorted(nodes, key=lambda i: -part.scores[i])[: plan.budget])
        new = {node: number for number, node in enumerate(nodes, start=1)} | {-1: 0}
        rows.append([(part.tokens[i], new[part.parents[i]], 1, part.scores[i]) for i in nodes])
    most = max(map(len, rows))
    padded = [[(0, -1, 1, 0.0), *row, *[(0, 0, 0, -math.inf)] * (most - len(row))] for row in rows]
    tokens, parents, valid, scores = torch.tensor(padded, dtype=torch.float64).unbind(-1)
    return TokenTree(tokens.long(), parents.long(), valid.bool(), scores.float()), last


def verdict(tree: TokenTree, texts: Sequence[tuple[Text, int]]) -> Verdict:
    """What the texts go on with."""
    paths = []
    for row, (text, place) in enumerate(texts):
        path, (tokens, parents, valid, _) = [0], (each[row] for each in tree.listed)
        for token in text.places[place].ahead:
            nodes = range(path[-1] + 1, tree.num_nodes)
            found = (i for i in nodes if parents[i] == path[-1] and tokens[i] == token and valid[i])
            if (node := next(found, None)) is None:
                break
            path.append(node)
        paths.append(path)
    return Verdict(paths, [0] * len(paths))


class Clock:
    """By how much the times that the controller is shown differ from those that count."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._drift = 0.0

    def pace(self) -> float:
        """Shown over real, of the next cycle."""
        fresh = math.sqrt(1 - DRIFT_MEMORY**2) * self._chance.gauss(0, DRIFT)
        self._drift = DRIFT_MEMORY * self._drift + fresh
        stall = STALL if self._chance.random() < STALLS else 1.0
        return stall * math.exp(self._drift + self._chance.gauss(0, NOISE))


class Off(Fixed):
    """Plain decoding."""

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        return DraftLimits(self.plan, [0] * len(caps))


def play(policy: Policy, texts: Sequence[Text], costs: Costs, clock: Clock) -> float:
    """Milliseconds that a batch of ``texts`` takes; the prompt of none is counted."""
    rows, total = [(text, 0) for text in texts], 0.0
    for _ in rows:
        policy.begin()
    while rows:
        caps = [len(text.places) - place - 1 for text, place in rows]
        # What stands before an answer is no part of it here: contexts are those of the table.
        limits = policy.limits([costs.context + place for _, place in rows], caps)
        caps = [min(pair) for pair in zip(caps, limits.depths, strict=True)]
        tree, draft = TokenTree.root_only(torch.zeros(len(rows), dtype=torch.int64)), 0.0
        if max(caps) > 0:
            tree, levels = drafted(rows, limits.plan, caps)
            size = np.array([float(levels)]), np.array([float(limits.plan.width)])
            draft = costs.draft(len(rows), *size).item()
        taken = verdict(tree, rows)
        (rest,), (slope,) = costs.verify(len(rows), np.array([float(tree.num_nodes)]))
        rest += slope * sum(place for _, place in rows) / len(rows)
        total += rest + draft
        pace = clock.pace()
        policy.learn(tree, taken, Times(pace * draft, pace * float(rest)))
        rows = [(t, at + len(path)) for (t, at), path in zip(rows, taken.paths, strict=True)]
        stay = [row for row, (text, place) in enumerate(rows) if place < len(text.places)]
        if len(stay) < len(rows):
            policy.keep(stay)
            rows = [rows[row] for row in stay]
    return total


def taken(policy: Policy, groups: Sequence[list[Text]], costs: Costs, seed: int = 0) -> float:
    """Milliseconds of one batch after the other; ``seed`` of the noise."""
    clock = Clock(seed)
    return sum(play(policy, group, costs, clock) for group in groups)


def written(engine: Engine, prompts: Sequence[TaskPrompt], params: SamplingParams) -> list[Text]:
    """The answers to those of ``prompts`` that the context holds with them, and what is drafted at
    every position of theirs."""
    vocab_size, room = engine.target.vocab_size, engine.target.context_length - NEW
    ids = [
        prompt.ids(vocab_size) if isinstance(prompt, RandomTokens) else engine.encode(prompt)
        for prompt in prompts
    ]
    ids, texts = [prompt for prompt in ids if len(prompt) <= room], []
    for first in range(0, len(ids), BATCH):
        trees: list[TokenTree] = []
        noted = partial(_noted, engine.drafter.draft, trees)
        with patch.object(engine.drafter, "draft", noted):
            done = engine.generate(ids[first : first + BATCH], params)
        texts += [text_of(trees, row, answer.token_ids) for row, answer in enumerate(done)]
    return texts


def _noted(
    draft: Callable[[DraftRequest], TokenTree], trees: list[TokenTree], request: DraftRequest
) -> TokenTree:
    """A drafter that drafts nothing, with what it would have drafted in ``trees``."""
    trees.append(draft(request))
    return TokenTree.root_only(request.roots)


def text_of(trees: list[TokenTree], row: int, ids: list[int]) -> Text:
    """The answer ``ids`` of one row with what was drafted at each of its tokens but the last. All
    answers of a batch are equally long, so rows stay where they are."""
    places = []
    for place, tree in enumerate(trees, start=1):
        assert tree.tokens[row, 0] == ids[place - 1]
        tokens, parents, valid, depths = (each[row] for each in tree.listed)
        nodes = [i for i in range(1, tree.num_nodes) if valid[i]]
        new = {node: number for number, node in enumerate(nodes)} | {0: -1}
        # The last draft is none: there is room for the target's own token only.
        scores = [] if tree.scores is None else tree.scores[row].tolist()
        places.append(
            Place(
                [depths[i] for i in nodes],
                [new[parents[i]] for i in nodes],
                [scores[i] for i in nodes],
                [tokens[i] for i in nodes],
                ids[place:],
            )
        )
    return Text(places)


def measured(engine: Engine, plan: TreePlan) -> Costs:
    """Of cycles with any of ``BATCHES`` rows."""
    sizes = BATCHES[1:]
    tables = [measure(engine.target, engine.drafter, plan, max_batch_size=size) for size in sizes]
    return replace(
        tables[-1],
        batches=BATCHES,
        verify_ms=(tables[0].verify_ms[0], *(table.verify_ms[-1] for table in tables)),
        draft_ms=(tables[0].draft_ms[0], *(table.draft_ms[-1] for table in tables)),
    )


def known(costs: Costs, num_rows: int) -> Costs:
    """What a load with batches of ``num_rows`` would have measured."""
    chosen = [costs.batches.index(size) for size in sorted({1, min(2, num_rows), num_rows})]
    return replace(
        costs,
        batches=tuple(costs.batches[i] for i in chosen),
        verify_ms=tuple(costs.verify_ms[i] for i in chosen),
        draft_ms=tuple(costs.draft_ms[i] for i in chosen),
    )


def cells(tasks: Sequence[Task], engine: Engine, plan: TreePlan, costs: Costs) -> Iterator[Any]:
    """A row of the report for each task, temperature and size of batch."""
    fixed = [plan.limited(depth, plan.width, budget) for depth in DEPTHS for budget in BUDGETS]
    for task in tasks:
        is_random = task.name == "random"
        for temperature in (0.0, 2.0) if is_random else (0.0, 1.0):
            params = SamplingParams(
                max_new_tokens=NEW, temperature=temperature, ignore_eos=True, seed=0
            )
            texts = written(engine, task.prompts, params)
            for size in (1, BATCH):
                groups = [texts[i : i + size] for i in range(0, len(texts), size)]
                yield {
                    "task": task.name,
                    "temperature": temperature,
                    "batch": size,
                    "plain_ms": taken(Off(plan), groups, costs),
                    "fixed_ms": {str(tree): taken(Fixed(tree), groups, costs) for tree in fixed},
                    "controller_ms": [
                        taken(Controller(plan, known(costs, size)), groups * ROUNDS, costs, seed)
                        / ROUNDS
                        for seed in range(SEEDS)
                    ],
                }


def main(sources: Sequence[str], limit: int, out: Path) -> None:
    """Every cell as it comes, all of them to ``out``."""
    plan = TreePlan("dynamic", DEPTHS[-1], 3, BUDGETS[-1], reach=0.5)
    # No level ends it and no node is left out: what any part of the plan would have been is in it.
    whole = TreePlan(
        "dynamic", plan.depth, plan.width, plan.width + plan.width**2 * (plan.depth - 1)
    )
    options = {"contrast_levels": 0}
    engine = jakiro.load(
        "pico", drafter="jakiro", drafter_options=options, tree=whole, max_batch_size=BATCH
    )
    place, costs, rows = asdict(environment()), measured(engine, plan), []
    for row in cells(load_tasks(sources, limit), engine, plan, costs):
        best = min(row["fixed_ms"], key=row["fixed_ms"].__getitem__)
        shares = [row["fixed_ms"][best] / ms for ms in row["controller_ms"]]
        speedup = row["plain_ms"] / row["fixed_ms"][best]
        shown = ", ".join(f"{share:.3f}" for share in shares)
        print(
            f"{row['task']}, T = {row['temperature']:g}, batch {row['batch']}: best {best}, "
            f"{speedup:.2f} x plain; controller {shown} of it",
            flush=True,
        )
        rows.append(row)
    found = {
        "environment": place,
        "command": ["python", "-m", "scripts.replay", *sys.argv[1:]],
        "plan": str(plan),
        "costs": costs.to_json(),
        "rows": rows,
    }
    text = json.dumps(found, indent=1) + "\n"
    replace_files({out: lambda path: path.write_text(text, "utf-8")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", required=True, help="as of jakiro bench")
    parser.add_argument("--limit", type=int, default=BATCH, help="prompts of each task")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    main(options.task, options.limit, options.out)
