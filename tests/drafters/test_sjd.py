"""Speculative Jacobi decoding: the law of what it emits, what its guesses are drawn from, and what
it saves on a model that draws images token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from math import prod

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from jakiro.drafters.sjd import Sjd
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError
from jakiro.sampling.draws import WithoutReplacement
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView
from jakiro.target.target import Target
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import RULES, Rule
from jakiro.verify.rejection import recursive_rejection
from tests.conformance import world

Law = list[float]
VOCAB, WINDOW = 3, 2


def iteration(
    after: list[Law], last: int, laws: list[Law]
) -> Iterator[tuple[float, tuple[int, ...], list[Law]]]:
    """Every way one iteration may go, for a target whose law depends on one token: its
    probability, what is emitted, and what is then said of the places behind it."""
    for guesses in product(range(VOCAB), repeat=WINDOW):
        reach = prod(law[guess] for law, guess in zip(laws, guesses, strict=True))
        if not reach:
            continue
        said = [after[token] for token in (last, *guesses)]
        for i, guess in enumerate(guesses):
            passes = min(1.0, said[i][guess] / laws[i][guess])
            rest = [max(0.0, p - q) for p, q in zip(said[i], laws[i], strict=True)]
            for token, excess in enumerate(rest):
                if passes < 1 and excess:
                    chance = reach * (1 - passes) * excess / sum(rest)
                    yield chance, (*guesses[:i], token), said[i + 1 :]
            reach *= passes
        for token, chance in enumerate(said[-1]):
            yield reach * chance, (*guesses, token), []


def test_every_text_has_the_probability_of_plain_sampling() -> None:
    """By enumeration of all iterations, at a temperature and a top-k, with even and with sure
    starts."""
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(4)).double()
    cut = (logits / 0.6).masked_fill(logits <= logits.amin(-1, keepdim=True), -torch.inf)
    after, size = cut.softmax(-1).tolist(), 3
    for start in ([1 / 3] * 3, [0.0, 1.0, 0.0]):
        found: Counter[tuple[int, ...]] = Counter()

        def follow(chance: float, text: tuple[int, ...], laws: list[Law]) -> None:
            if len(text) > size:
                found[text[: size + 1]] += chance  # noqa: B023
                return
            laws = [*laws, start, start][:WINDOW]  # noqa: B023
            for share, new, behind in iteration(after, text[-1], laws):
                follow(chance * share, (*text, *new), behind)

        follow(1.0, (0,), [])
        for text in product(range(VOCAB), repeat=size):
            steps = pairwise((0, *text))
            assert found[0, *text] == pytest.approx(prod(after[a][b] for a, b in steps), abs=1e-12)


def test_guesses_are_drawn_from_what_was_said_of_their_places() -> None:
    target = ToyTarget.random(vocab_size=6, order=2, context_length=100)
    target.table *= 0.4
    seen: list[tuple[TokenTree, Tensor, Verdict]] = []

    def spy(tree: TokenTree, nodes: NodeView) -> Verdict:
        seen.append((tree, nodes.probs, recursive_rejection(tree, nodes)))
        return seen[-1][2]

    rule = Rule("spy", "in_law", spy, ("chain",), WithoutReplacement)
    engine = Engine(target, Sjd(), rule, plan=TreePlan.chain(5))
    engine.generate([[3, 4, 5]], SamplingParams(max_new_tokens=40, temperature=0.8, seed=2))
    lengths = set()
    for (tree, probs, verdict), (later, _, _) in pairwise(seen):
        if later.laws is None:
            continue
        said = probs[0, verdict.paths[0][-1] + 1 : tree.num_nodes]
        depth = later.laws.shape[1]
        expected = torch.cat([said, torch.full((5, 6), 1 / 6).double()])[:depth]
        torch.testing.assert_close(later.laws[0].double(), expected, atol=1e-6, rtol=1e-5)
        lengths.add(len(said))
    assert len(lengths) > 3


SIDE, CODES = 6, 6
BOS = CODES


def images(count: int, seed: int) -> Tensor:
    """[count, 1 + SIDE * SIDE]: two colours in columns of random widths, a tenth of them noise."""
    chance = torch.Generator().manual_seed(seed)
    colours = torch.stack([torch.randperm(CODES, generator=chance)[:2] for _ in range(count)])
    columns = torch.randint(2, (count, 1, SIDE), generator=chance).expand(-1, SIDE, -1)
    drawn = colours.gather(1, columns.flatten(1))
    noise = torch.randint(CODES, drawn.shape, generator=chance)
    drawn = torch.where(torch.rand(drawn.shape, generator=chance) < 0.1, noise, drawn)
    return torch.cat([torch.full((count, 1), BOS), drawn], 1)


@pytest.fixture(scope="module")
def painter() -> Target:
    """A small Llama over a codebook, trained on such images."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CODES + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = images(32, seed=step)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Target(model.double().eval())


PARAMS = SamplingParams(
    max_new_tokens=SIDE * SIDE, temperature=1.0, top_k=4, logit_bias={BOS: -100.0}
)


def painted(painter: Target, drafter: Sjd, rule: str) -> tuple[list[list[int]], float]:
    """Images, and the tokens per forward."""
    engine = Engine(painter, drafter, RULES[rule], plan=TreePlan.chain(12), max_batch_size=24)
    done = engine.generate([[BOS]] * 24, [replace(PARAMS, seed=seed) for seed in range(24)])
    return [each.token_ids for each in done], engine.stats.tau


@pytest.mark.parametrize("rule", ["token", "match"])
def test_images_take_a_fraction_of_the_forwards(painter: Target, rule: str) -> None:
    """Fewer where guesses start from what was said of the place above."""
    drawn, even = painted(painter, Sjd("random"), rule)
    same, above = painted(painter, Sjd("sample", SIDE), rule)
    assert 3 < even < above - 0.2
    columns = torch.tensor(drawn).view(-1, SIDE, SIDE)
    assert float((columns[:, 1:] == columns[:, :-1]).double().mean()) > 0.6
    if rule == "match":
        assert drawn == same
        for seed in (0, 5):
            asked = replace(PARAMS, seed=seed)
            assert drawn[seed] == world.answer(painter.model, [BOS], asked)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="start must be one of random, repeat, sample, got 'up'"):
        Sjd("up")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="back must be at least 1, got 0"):
        Sjd("repeat", 0)
