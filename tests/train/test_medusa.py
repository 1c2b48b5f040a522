"""Learning one-shot heads: the loss against plain loops, and the tree from what was measured."""

from __future__ import annotations

from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.api import load
from jakiro.drafters.medusa import Medusa
from jakiro.hub import checkpoint
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.config import OneShotOptions, TrainConfig
from jakiro.train.frozen import CHUNK_ELEMENTS
from jakiro.train.history import History
from jakiro.train.learner import readings
from jakiro.train.medusa import MedusaLearner, best_tree
from jakiro.train.samples import Samples
from jakiro.train.trainer import HISTORY_FILE, Trainer

SHORT: dict[str, Any] = {"steps": 6, "batch_tokens": 48, "warmup": 2, "save_every": 3}


def config(**changes: Any) -> TrainConfig:
    settings = {"method": "medusa", "precision": "float32", "held_out": 1, **SHORT, **changes}
    return TrainConfig(**settings)


@pytest.fixture(params=[True, False], ids=["own", "shared"])
def learner(request: pytest.FixtureRequest, target: Target) -> MedusaLearner:
    options = OneShotOptions(num_heads=3, num_layers=2, own_head=request.param, decay=0.7)
    made = MedusaLearner(target, config(one_shot=options))
    for parameter in made.module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def test_the_loss_is_that_of_plain_loops(
    learner: MedusaLearner, target: Target, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole, in parts that share their totals, and in chunks of a single row."""
    batch = samples.batch(range(8))
    features = target.features(batch.ids, batch.lengths, LAST_FEATURE)
    with torch.no_grad():
        logits = learner.module.heads(features, target.lm_head).log_softmax(-1)
    sums, counts = [0.0] * 3, [0] * 3
    for row, head in product(range(8), range(3)):
        for place in range(int(batch.lengths[row]) - 2 - head):
            label = place + 2 + head
            if batch.carries_loss[row, label]:
                sums[head] -= float(logits[row, place, head, batch.ids[row, label]])
                counts[head] += 1
    expected = sum(0.7**head * sums[head] / counts[head] for head in range(3))
    totals = learner.counts(batch)
    assert totals.tolist() == counts
    outcome = learner.loss(batch, totals, 0)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-5)
    assert outcome.tally["accuracy"][1].tolist() == counts
    parts = [learner.loss(samples.batch(range(i, i + 4)), totals, 0).loss.item() for i in (0, 4)]
    assert sum(parts) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 1)
    assert learner.loss(batch, totals, 0).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_target_gets_no_gradient(learner: MedusaLearner, samples: Samples) -> None:
    batch = samples.batch(range(8))
    learner.loss(batch, learner.counts(batch), 0).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.module.parameters())
    assert all(parameter.grad is None for parameter in learner.target.model.parameters())


def test_what_is_judged_is_the_likeliest_path(
    learner: MedusaLearner, target: Target, samples: Samples
) -> None:
    """Agreement with the target's own choices after every place, by plain loops."""
    batch = samples.batch(range(8))
    features = target.features(batch.ids, batch.lengths, LAST_FEATURE)
    with torch.no_grad():
        guesses = learner.module.heads(features, target.lm_head).argsort(-1, descending=True)
        choices = target.lm_head(features).argmax(-1)
        tally = learner.judge(batch)
    asked, taken, ranks = torch.zeros(3), torch.zeros(3), torch.zeros(3, 10)
    for row, place in product(range(8), range(batch.ids.shape[1])):
        alive = True
        for head in range(3):
            label = place + 2 + head
            if label >= batch.lengths[row] or not batch.carries_loss[row, label]:
                alive = False
                continue
            rank = guesses[row, place, head].tolist().index(int(choices[row, label - 1]))
            if rank < 10:
                ranks[head, rank] += 1
            if alive:
                asked[head] += 1
                taken[head] += rank == 0
            alive = alive and rank == 0
    assert tally["alpha"].tolist() == [taken.tolist(), asked.tolist()]
    assert [tally[f"ranks_{head}"][0].tolist() for head in range(3)] == ranks.tolist()
    assert readings(tally)["tau"] >= 1


def test_it_learns_by_heart(target: Target, samples: Samples, out: Path) -> None:
    settings = {"steps": 200, "batch_tokens": 1000, "lr": 1e-2, "held_out": 0, "save_every": 200}
    options = OneShotOptions(num_heads=2)
    Trainer(target, samples, config(**settings, one_shot=options), out).run()
    accuracy = History(out / HISTORY_FILE).read()[-1]["accuracy"]
    assert len(accuracy) == 2
    assert min(accuracy) > 0.9


def test_a_run_leaves_a_drafter_and_goes_on_where_it_stopped(
    target: Target, samples: Samples, out: Path
) -> None:
    tree = OneShotOptions(num_heads=3, tree_nodes=7)
    whole, settings = out.with_name("whole"), config(one_shot=tree)
    Trainer(target, samples, settings, whole).run()

    def stop(progress: Any) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(target, samples, settings, out).run(stop)
    Trainer(target, samples, settings, out).run()
    ours, theirs = (checkpoint.load(place).state_dict() for place in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    engine = load(target.model, out)
    assert isinstance(engine.drafter, Medusa)
    assert engine.plan.kind == "static" and engine.plan.budget == 7
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1)
    plain = load(target.model, "none").generate([[3, 4, 5]], params)
    assert engine.generate([[3, 4, 5]], params)[0].token_ids == plain[0].token_ids


@pytest.mark.parametrize("num_nodes", [1, 3, 5])
def test_the_best_tree_is_the_best_of_all_trees(num_nodes: int) -> None:
    """Expected length: the sum over nodes of the chance that the whole path is right."""
    ranks = [[0.5, 0.3], [0.6, 0.1], [0.7, 0.2]]
    paths = [path for size in (1, 2, 3) for path in product((0, 1), repeat=size)]

    def worth(path: tuple[int, ...]) -> float:
        return prod(ranks[level][rank] for level, rank in enumerate(path))

    closed = (
        tree
        for tree in combinations(paths, num_nodes)
        if all(len(path) == 1 or path[:-1] in tree for path in tree)
    )
    found = best_tree(ranks, num_nodes)
    assert found.budget == num_nodes
    assert sum(map(worth, found.paths)) == pytest.approx(
        max(sum(map(worth, tree)) for tree in closed)
    )
