"""Draft vocabularies: what is kept, and that a head carries it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.train.config import HeadOptions, TrainConfig
from jakiro.train.feature_head import FeatureHead
from jakiro.train.vocabulary import frequent_tokens
from tests.train.support import samples_of, tiny_target


def test_the_most_frequent_tokens_and_the_special_ones() -> None:
    counts = torch.tensor([5, 0, 9, 9, 1, 7, 0])
    assert frequent_tokens(counts, 3, []).tolist() == [2, 3, 5]
    assert frequent_tokens(counts, 3, [6, 1, 99]).tolist() == [1, 2, 6]
    assert frequent_tokens(counts, 7, [6]).tolist() == list(range(7))
    with pytest.raises(ConfigError, match=r"of 1 tokens cannot hold the 2 special tokens"):
        frequent_tokens(counts, 1, [6, 1])


def test_a_checkpoint_holds_the_ids(tmp_path: Path) -> None:
    target, samples = tiny_target(), samples_of(count=8, length=20)
    learner = FeatureHead(target, TrainConfig(head=HeadOptions(draft_vocab_size=9)))
    learner.prepare(samples.counts(target.vocab_size), {39, 36})
    learner.save(learner.module, tmp_path, {})
    loaded = checkpoint.load(tmp_path, target.fingerprint())
    ids = loaded.get_buffer("draft_ids")
    assert ids.dtype == torch.int64 and len(ids) == 9
    assert {36, 39} <= set(ids.tolist())
    assert samples.counts(40).sum() == samples.num_tokens
    least = samples.counts(40)[[i for i in ids.tolist() if i not in (36, 39)]].min()
    left_out = [i for i in range(40) if i not in ids.tolist()]
    assert samples.counts(40)[left_out].max() <= least
