"""Draft vocabularies: what is kept, and that a head carries it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import jakiro
from jakiro.drafters.base import DraftRequest
from jakiro.errors import ConfigError, DataError
from jakiro.hub import checkpoint
from jakiro.sampling.params import SamplingParams
from jakiro.train.config import HeadOptions, TrainConfig
from jakiro.train.feature_head import FeatureHead
from jakiro.train.vocabulary import frequent_tokens, restrict
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.train.support import VOCABULARY, samples_of, tiny_target, word_tokenizer


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
    learner.prepare(samples, {39, 36})
    learner.save(learner.module, tmp_path, {})
    loaded = checkpoint.load(tmp_path, target.fingerprint())
    ids = loaded.get_buffer("draft_ids")
    assert ids.dtype == torch.int64 and len(ids) == 9
    assert {36, 39} <= set(ids.tolist())
    assert samples.counts(40).sum() == samples.num_tokens
    least = samples.counts(40)[[i for i in ids.tolist() if i not in (36, 39)]].min()
    left_out = [i for i in range(40) if i not in ids.tolist()]
    assert samples.counts(40)[left_out].max() <= least


def test_a_trained_head_is_restricted(tmp_path: Path) -> None:
    """Its drafts hold none but the kept tokens, the text is that of plain decoding, and its weights
    are bit by bit those of the head."""
    engine = jakiro.load(tiny_target(torch.float64).model, "none", tokenizer=word_tokenizer())
    data = tmp_path / "data.jsonl"
    lines = ["w1 w2 w3 w4 " * 3 + "w9", "w5 w6 w7 w1 w2 w3 " * 5]
    data.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    whole, few = tmp_path / "whole", tmp_path / "few"
    head = world.head(engine.target, "jakiro")
    notes = {"tree": "dynamic:3,4,9", "of": "mine"}
    checkpoint.save(head, whole, engine.target.fingerprint(), notes)

    done = restrict(whole, engine, [data], 10, few)
    assert (done.num_tokens, done.vocab_size) == (10, VOCABULARY)
    # Of 43 words 1, 2 and 3 occur 8 times, 5, 6 and 7 5 times, 4 and 9 less.
    assert done.share == pytest.approx(39 / 43)
    assert checkpoint.read_config(few)["notes"] == notes | {"draft_vocab_share": done.share}
    before, after = (load_file(place / "model.safetensors") for place in (whole, few))
    kept = after.pop("draft_ids").tolist()
    assert kept == [1, 2, 3, 5, 6, 7, 36, 37, 38, 39]
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert before.keys() == after.keys()

    drafting = jakiro.load(engine.target.model, few, tokenizer=engine.tokenizer)
    drafted: set[int] = set()
    tell = drafting.drafter.draft

    def noted(request: DraftRequest) -> TokenTree:
        tree = tell(request)
        drafted.update(tree.tokens[:, 1:][tree.valid[:, 1:]].tolist())
        return tree

    drafting.drafter.draft = noted  # type: ignore[method-assign]
    for params in (
        SamplingParams(24, ignore_eos=True),
        SamplingParams(24, temperature=1.2, top_p=0.9, top_k=20, seed=3, ignore_eos=True),
    ):
        plain, fast = (each.generate(["w1 w8 w2"], params)[0] for each in (engine, drafting))
        assert fast.token_ids == plain.token_ids and not set(plain.token_ids) <= set(kept)
    assert len(drafted) > 4 and drafted <= set(kept)

    with pytest.raises(ConfigError, match="must lie between 1 and 40"):
        restrict(whole, engine, [data], 41, tmp_path / "no")
    one_shot = world.head(engine.target, "medusa")
    checkpoint.save(one_shot, tmp_path / "medusa", engine.target.fingerprint())
    with pytest.raises(ConfigError, match="a medusa head cannot be restricted"):
        restrict(tmp_path / "medusa", engine, [data], 9, tmp_path / "no")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="no sample with a token"):
        restrict(whole, engine, [empty], 9, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_no_bit_of_a_head_in_float64_is_lost(tmp_path: Path) -> None:
    engine = jakiro.load(tiny_target(torch.float64).model, "none", tokenizer=word_tokenizer())
    data, whole, few = (tmp_path / name for name in ("data.jsonl", "whole", "few"))
    data.write_text('{"text": "w1 w2 w3"}\n')
    head = world.head(engine.target, "jakiro").double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1e-12)
    print_of = engine.target.fingerprint()
    checkpoint.save(head, whole, print_of, {}, torch.float64)
    restrict(whole, engine, [data], 10, few)
    before, after = (load_file(place / "model.safetensors") for place in (whole, few))
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
