"""Training passes against the drafter: what is trained is what drafts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.feature import FeatureDrafter
from jakiro.drafters.nn import DraftHead
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.train.config import HeadOptions, TrainConfig
from jakiro.train.evaluate import judge
from jakiro.train.feature_head import head_config
from jakiro.train.features import teach
from jakiro.train.learner import add_up, readings
from jakiro.train.rollout import rollout
from jakiro.train.samples import Batch
from jakiro.tree.shapes import TreePlan
from tests.train.support import VOCABULARY, samples_of, tiny_target


def double_head(method: str, reads: tuple[int, ...] = ()) -> DraftHead:
    torch.manual_seed(3)
    options = HeadOptions(reads=reads)
    config = head_config(tiny_target(), TrainConfig(method=method, head=options))
    head = DraftHead(config).double().eval()
    if reads:  # they begin as nothing
        torch.nn.init.normal_(head.streams.proj.weight)
    return head


class AppendCache:
    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat(self.keys, 2), torch.cat(self.values, 2)


@torch.no_grad()
def test_passes_equal_chains_fed_one_pair_at_a_time() -> None:
    head = double_head("jakiro")
    embeddings, features = torch.randn(2, 2, 7, 32, dtype=torch.float64).unbind()
    outputs = rollout(head, embeddings, features, passes=4, contrasts=1)
    for root in range(7):
        cache, fed = AppendCache(), features
        for level in range(min(4, 7 - root)):
            pair = root + level
            # First everything up to the root from true features, then one pair per level.
            rows = slice(0, root + 1) if level == 0 else slice(pair, pair + 1)
            where = torch.arange(rows.start, rows.stop).expand(2, -1)
            seen = torch.arange(rows.stop)[None] <= torch.arange(rows.start, rows.stop)[:, None]
            inputs = fed[:, rows] if level == 0 else fed
            out = head(embeddings[:, rows], inputs, where, seen[None, None], cache, 1)
            fed = out.next[:, -1:]
            torch.testing.assert_close(outputs[level].next[:, pair], fed[:, 0])
            torch.testing.assert_close(outputs[level].ahead[0][:, pair], out.ahead[0][:, -1])


class PlainScores:
    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        return (sharpness.logits * logits).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize(("method", "reads"), [("jakiro", ()), ("eagle2", ()), ("jakiro", (0, 1))])
def test_passes_draft_what_the_drafter_drafts(method: str, reads: tuple[int, ...]) -> None:
    target, head, depth = tiny_target(torch.float64), double_head(method, reads), 4
    drafter = FeatureDrafter(head, target)
    texts = torch.randint(VOCABULARY, (6, 10), generator=torch.Generator().manual_seed(0))
    drafted = []
    for text in texts:
        ids = text[None, :-1]
        features = target.features(ids, torch.tensor([9]), drafter.needs)[0]
        drafter.begin(ids[0].tolist(), features)
        request = DraftRequest(text[-1:], [9], [depth], TreePlan.chain(depth), PlainScores())
        drafted.append(drafter.draft(request).tokens[0, 1:])
        drafter.keep([])
    chains = torch.stack(drafted)
    assert len(chains.unique()) > depth

    ids = torch.cat([texts, chains], 1)
    batch = Batch(ids, torch.tensor([14] * 6), torch.ones_like(ids).bool(), torch.arange(6))
    lesson = teach(target, batch, needs=drafter.needs)
    assert torch.equal(lesson.features, teach(target, batch).features)
    contrast = head.config.contrast_levels
    outputs = rollout(head, lesson.embeddings, lesson.inputs, depth - contrast, contrast)
    # The root is token 9, so its pair is 8; level j comes from pass j at pair 8 + j.
    levels = [output.next[:, 8 + level] for level, output in enumerate(outputs)]
    if contrast:
        levels.append(outputs[-1].ahead[0][:, 8 + len(outputs) - 1])
    guesses = torch.stack([target.lm_head(feature).argmax(-1) for feature in levels], 1)
    assert torch.equal(guesses, chains)


def test_quality_is_measured_on_every_level() -> None:
    target = tiny_target()
    head = DraftHead(head_config(target, TrainConfig()))
    samples = samples_of(count=8, length=20)
    parts = [judge(head, target, samples.batch(part), depth=4) for part in ([0, 1], [2, 3])]
    quality = readings(add_up(parts))
    assert len(quality["accuracy"]) == 2
    assert len(quality["alpha"]) == 4
    assert quality["alpha"][0] == quality["accuracy"][0]
    assert 1 <= quality["tau"] < 5
    whole = judge(head, target, samples.batch([0, 1, 2, 3]), depth=4)
    for name, reading in readings(whole).items():
        assert reading == pytest.approx(quality[name], abs=1e-5), name
