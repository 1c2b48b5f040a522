"""Suggestions from one superposed stream, beside a plain recomputation of the method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import jakiro
from jakiro.drafters.none import NoDrafter
from jakiro.engine.engine import Engine
from jakiro.engine.ngrams import NGrams
from jakiro.engine.superposed import Superposed
from jakiro.errors import ConfigError
from tests.cli.conftest import Run, run, target  # noqa: F401  fixtures
from tests.conformance import world

PROMPT = list(world.prompt(3))
CORPUS = [[*PROMPT[-3:], 8, 50, 31, 12, 8, 50, 44, 12], [4, 31, 12, 9, 8, 50, 31, 7], [50, 44, 3]]


def engine(family: str = "llama", eos_ids: tuple[int, ...] = ()) -> Engine:
    return world.make_engine(world.target(family), NoDrafter(), eos_ids=eos_ids)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_suggestion_without_ngrams_is_greedy_decoding(family: str) -> None:
    """Past a window of the family, too."""
    superposed = Superposed(engine(family), alpha=0.0)
    (one,) = superposed.suggest(PROMPT, k=1, max_new_tokens=12)
    assert one.token_ids == list(world.truth(family, "greedy", 3))[:12]
    assert superposed.num_forwards == 12


def test_of_equal_logits_the_first_is_taken_as_in_greedy_decoding() -> None:
    with_ties = torch.zeros(64)
    with_ties[[50, 9, 31]] = 2.0
    likeliest = Superposed(engine())._likeliest(with_ties, 5)
    assert [*likeliest] == [9, 31, 50, 0, 1]


def test_a_target_that_is_more_than_a_model_is_refused() -> None:
    opened = jakiro.load(
        world.model("llama"), "none", definition="contrastive", amateur=world.model("llama")
    )
    with pytest.raises(ConfigError, match="load it without a definition"):
        Superposed(opened)


class Words:
    """Each token a word, without the space before the first."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, token_ids))


def test_a_text_goes_on_where_the_prompt_ends() -> None:
    opened = engine()
    opened.tokenizer = Words()  # type: ignore[assignment]
    (one,) = Superposed(opened, alpha=0.0).suggest(PROMPT, k=1, max_new_tokens=3)
    assert one.text == "".join(f" {token}" for token in one.token_ids)


def ngram_law(text: list[int]) -> dict[int, float]:
    """The weighted sum of 2- to 6-gram probabilities, by scanning the corpus."""
    law: dict[int, float] = {}
    for size, weight in zip(range(1, 6), (0.01, 0.04, 0.15, 0.18, 0.12), strict=True):
        followers = [
            known[i + size]
            for known in CORPUS
            for i in range(len(known) - size)
            if known[i : i + size] == text[-size:]
        ]
        for token in followers:
            law[token] = law.get(token, 0.0) + weight / len(followers)
    return law


def by_hand(
    model: Any, k: int, num_new: int, alpha: float, heat: float, ends: tuple[int, ...]
) -> list[tuple[list[int], float]]:
    """The method from whole forwards of embeddings, one draft and one token at a time."""
    table = model.get_input_embeddings().weight
    stream = [table[token] for token in PROMPT]
    drafts: list[tuple[list[int], float]] = [([], 0.0)]
    for step in range(num_new):
        going = [d for d in drafts if not d[0] or d[0][-1] not in ends]
        if not going:
            break
        if step:
            powers = [math.exp(score - max(s for _, s in going)) for _, score in going]
            pairs = list(zip(powers, going, strict=True))
            stream.append(sum(p / sum(powers) * table[d[0][-1]] for p, d in pairs))  # type: ignore[arg-type]
        with torch.inference_mode():
            logits = model(inputs_embeds=torch.stack(stream)[None], use_cache=False).logits[0, -1]
        law = [
            z - math.log(sum(math.exp(x / heat) for x in logits.tolist())) * heat for z in logits
        ]
        logs = {token: float(z) / heat for token, z in enumerate(law)}
        likely = sorted(logs, key=lambda token: -logs[token])[: 3 * k if step else k]
        found = [draft for draft in drafts if draft not in going]
        for ids, score in going:
            known = ngram_law([*PROMPT, *ids]) if alpha and step else {}
            shared = [token for token in likely if token in known]
            for token in shared or likely:
                more = logs[token] * (1 - alpha if step else 1)
                if alpha and step:
                    more += alpha * math.log(known[token]) if shared else -200.0
                found.append(([*ids, token], score + more))
        drafts = sorted(found, key=lambda draft: -draft[1])[:k]
    return drafts


@pytest.mark.parametrize(
    ("alpha", "heat", "ends"), [(0.54, 0.5, ()), (0.3, 2.0, (12, 44)), (0.0, 1.5, (50,))]
)
def test_suggestions_are_those_of_the_method(
    alpha: float, heat: float, ends: tuple[int, ...]
) -> None:
    """Those that have ended stay as they are and are fed no more."""
    superposed = Superposed(engine(eos_ids=ends), CORPUS, alpha=alpha, temperature=heat)
    found = superposed.suggest(PROMPT, k=3, max_new_tokens=7)
    wanted = by_hand(world.model("llama"), 3, 7, alpha, heat, ends)
    assert [each.token_ids for each in found] == [ids for ids, _ in wanted]
    for each, (ids, score) in zip(found, wanted, strict=True):
        assert each.log_score == pytest.approx(score, abs=1e-9)
        assert each.is_finished == (ids[-1] in ends)
    assert len({tuple(each.token_ids) for each in found}) == 3
    assert superposed.num_forwards <= 7


def test_ngrams_say_what_followed() -> None:
    ngrams = NGrams(CORPUS)
    for text in ([8, 50], [1, 8, 50], [31, 12, 8, 50], [*PROMPT, 8], [63]):
        assert ngrams.law(text) == pytest.approx(ngram_law(text))
    assert ngrams.law([63]) == {}


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({"alpha": 1.0}, {}, "alpha must be at least 0 and less than 1, got 1.0"),
        ({"temperature": 0.0}, {}, "temperature must be a number above 0, got 0.0"),
        ({}, {"k": 0}, "k must be an integer in 1..100, got 0"),
        ({}, {"k": 5000}, "k must be an integer in 1..100, got 5000"),
        ({}, {"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
    ],
)
def test_impossible_numbers(
    settings: dict[str, float], asked: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Superposed(engine(), **settings).suggest(PROMPT, **asked)


def test_the_command(run: Run, target: str, tmp_path: Path) -> None:  # noqa: F811
    corpus = tmp_path / "mine.txt"
    corpus.write_text("w1 w2 w3 w4 w5 w6 w1 w2 w7")
    asked = ("suggest", "w3 w1 w2", "-t", target, "-k", "2", "-n", "4", "--corpus", str(corpus))
    record = json.loads(run(*asked, "--json").stdout)
    assert len(record) == 2 and all(len(each["token_ids"]) <= 4 for each in record)
    shown = run(*asked).stdout.splitlines()
    assert [line.split(None, 1)[1] for line in shown] == [each["text"].lstrip() for each in record]
    missing = run("suggest", "w1", "-t", target, "--corpus", str(tmp_path / "none.txt"))
    assert missing.exit_code == 1 and "cannot read the corpus" in missing.stderr
