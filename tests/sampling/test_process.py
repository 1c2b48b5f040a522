"""Every node of a tree against the processors of ``transformers`` on that node's own text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import Sampler
from jakiro.tree.token_tree import TokenTree
from tests.oracles.plain import KeyedGumbel, Settings, processors_of

VOCAB = 150
EOS = (7, 11)
PROMPT = [5, 3, 3, 8, 149, 3]
TEXT = [8, 8, 12, 40]

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-penalties": {"repetition_penalty": 1.7, "presence_penalty": 0.8},
    "free": {"temperature": 1.3},
    "top-p": {"temperature": 0.5, "top_p": 0.9},
    "top-p-hot": {"temperature": 3.0, "top_p": 0.97},
    "top-k-penalty": {"temperature": 1.3, "top_k": 5, "repetition_penalty": 1.4},
    "min-p-bias": {"temperature": 0.8, "min_p": 0.05, "logit_bias": {9: 5.0, 12: -8.0}},
    "counts": {"temperature": 0.9, "presence_penalty": -1.5, "frequency_penalty": 0.9},
    "min-new": {"temperature": 1.0, "top_k": 20, "min_new_tokens": 6, "logit_bias": {7: 20.0}},
    "greedy-min-new": {"min_new_tokens": 6, "logit_bias": {7: 20.0, 11: 19.0}},
    "all": {
        "temperature": 4.0,
        "top_k": 66,
        "top_p": 0.95,
        "min_p": 0.08,
        "repetition_penalty": 0.8,
        "frequency_penalty": -0.3,
        "logit_bias": {40: 2.5},
        "min_new_tokens": 5,
    },
}


def random_tree(num_rows: int, size: int = 12) -> TokenTree:
    """Random parents, repeated tokens along the paths, distinct siblings, some padding at the end.

    The root's token is ``TEXT[-1]``.
    """
    tokens = torch.zeros(num_rows, size, dtype=torch.int64)
    parents = torch.full((num_rows, size), -1)
    valid = torch.ones(num_rows, size, dtype=torch.bool)
    tokens[:, 0] = TEXT[-1]
    for row in range(num_rows):
        taken = set()
        for node in range(1, size):
            parent = int(torch.randint(max(0, node - 4), node, ()))
            token = int(torch.randint(0, 14, ()))
            while (parent, token) in taken:
                token = (token + 1) % VOCAB
            taken.add((parent, token))
            parents[row, node], tokens[row, node] = parent, token
        valid[row, size - row % 3 :] = False
    tree = TokenTree(tokens, parents, valid)
    tree.check()
    return tree


def random_logits(num_rows: int, size: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    """The tokens of trees and texts are likely, so that penalties matter."""
    logits = torch.randn(num_rows, size, VOCAB) * 3
    logits[..., :14] += 4
    return logits.to(dtype)


def sampler_of(cases: list[dict[str, Any]], **more: Any) -> Sampler:
    """A sampler whose rows have seen ``PROMPT`` and emitted ``TEXT``."""
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for row, case in enumerate(cases):
        sampler.admit(
            SamplingParams(**case), PROMPT, seed=100 + row, eos_ids=EOS, choice_index=row, **more
        )
        sampler.extend(row, TEXT[:1])
        sampler.extend(row, TEXT[1:])
    return sampler


def path_to(tree: TokenTree, row: int, node: int) -> list[int]:
    path: list[int] = []
    while node:
        path.insert(0, int(tree.tokens[row, node]))
        node = int(tree.parents[row, node])
    return path


def check_row(
    tree: TokenTree, logits: Tensor, row: int, choice: Tensor, probs: Tensor, wanted: Settings
) -> None:
    """The choices and distributions of one row against the oracle's processors."""
    chain = processors_of(wanted, len(PROMPT))
    for node in range(tree.num_nodes):
        if not tree.valid[row, node]:
            continue
        ids = torch.tensor([PROMPT + TEXT + path_to(tree, row, node)])
        processed = noisy = logits[row, node][None]
        for stage in chain:
            processed, noisy = noisy, stage(ids, noisy)
            if not isinstance(stage, KeyedGumbel):
                processed = noisy
        assert choice[node] == noisy.argmax(), f"node {node} of row {row}"
        if wanted.temperature:
            torch.testing.assert_close(probs[node], processed.softmax(-1)[0])
        else:
            assert probs[node].nonzero().tolist() == [[int(noisy.argmax())]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "batch"])
def test_every_node_equals_transformers(mixed: bool, dtype: torch.dtype) -> None:
    names = list(CASES)
    for batch in [names] if mixed else [[name] for name in names]:
        tree, logits = random_tree(len(batch)), random_logits(len(batch), dtype=dtype)
        before = logits.clone()
        view = sampler_of([CASES[name] for name in batch]).view(tree, logits)
        assert not view.failed.any()
        for row, name in enumerate(batch):
            wanted = Settings(**CASES[name], eos_ids=EOS, seed=100 + row, choice_index=row)
            check_row(tree, logits, row, view.choice[row], view.probs[row], wanted)
        assert torch.equal(logits, before), "the caller's logits were changed"
        assert view.probs.dtype == dtype


def test_the_cases_bite() -> None:
    """Each setting changes something, so that none of the comparisons above is empty."""
    tree, logits = random_tree(1, 40), random_logits(1, 40)
    for name, case in CASES.items():
        for key in case:
            if len(case) > 1 and key != "temperature":
                without = {other: value for other, value in case.items() if other != key}
                whole = sampler_of([case]).view(tree, logits).probs
                part = sampler_of([without]).view(tree, logits).probs
                assert not torch.equal(whole, part), f"{key} does nothing in {name}"


def test_own_path_counts() -> None:
    """Two nodes of equal logits differ by what stands on their paths."""
    tree = TokenTree(
        torch.tensor([[40, 20, 21, 20]]),
        torch.tensor([[-1, 0, 0, 1]]),
        torch.ones(1, 4, dtype=torch.bool),
    )
    logits = torch.zeros(1, 4, VOCAB)
    logits[..., 20], logits[..., 30] = 2.0, 1.0
    for case in ({"repetition_penalty": 2.5}, {"presence_penalty": 1.5}):
        assert sampler_of([case]).view(tree, logits).choice.tolist() == [[20, 30, 20, 30]]
    counted = sampler_of([{"frequency_penalty": 0.6}]).view(tree, logits)
    assert counted.choice.tolist() == [[20, 20, 20, 30]]


def test_min_new_tokens_counts_the_path() -> None:
    tree = TokenTree(
        torch.tensor([[40, 20, 21, 20]]),
        torch.tensor([[-1, 0, 1, 2]]),
        torch.ones(1, 4, dtype=torch.bool),
    )
    logits = torch.zeros(1, 4, VOCAB)
    logits[..., 7], logits[..., 60], logits[..., 30] = 3.0, 2.0, 1.0
    case = {"min_new_tokens": len(TEXT) + 2, "stop_token_ids": (60,)}
    assert sampler_of([case]).view(tree, logits).choice.tolist() == [[30, 30, 7, 7]]
    never = {"max_new_tokens": 2**63 - 1, "min_new_tokens": 2**63 - 1}
    assert sampler_of([never]).view(tree, logits).choice.tolist() == [[60, 60, 60, 60]]


def test_processors_see_unpadded_texts_by_depth() -> None:
    calls: list[list[list[int]]] = []

    def ban_third_last(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(ids.tolist())
        scores[torch.arange(len(ids)), ids[:, -3]] = -torch.inf
        return scores

    tree, logits = random_tree(2), random_logits(2)
    sampler = sampler_of([{}, CASES["all"]], processors=[ban_third_last])
    view = sampler.view(tree, logits)
    for row, case in enumerate([{}, CASES["all"]]):
        wanted = Settings(
            **case, eos_ids=EOS, seed=100 + row, choice_index=row, processors=[ban_third_last]
        )
        seen = [text for call in calls for text in call]
        texts = [
            PROMPT + TEXT + path_to(tree, row, node)
            for node in range(tree.num_nodes)
            if tree.valid[row, node]
        ]
        assert all(text in seen for text in texts)
        check_row(tree, logits, row, view.choice[row], view.probs[row], wanted)
    assert len(calls[0][0]) == len(PROMPT + TEXT)


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    cases = list(CASES.values())
    tree, logits = random_tree(len(cases)), random_logits(len(cases), dtype=torch.float32)
    sampler = sampler_of(cases)
    together = sampler.view(tree, logits)
    scores = sampler.scores(logits, 2)
    for row in reversed(range(len(cases))):
        part = slice(row, row + 1)
        own = TokenTree(tree.tokens[part], tree.parents[part], tree.valid[part])
        as_slice = sampler.view(own, logits[part], part)
        alone = sampler_of(cases)
        alone.keep([row])
        for view in (as_slice, alone.view(own, logits[part])):
            assert torch.equal(view.choice[0], together.choice[row])
            torch.testing.assert_close(view.probs[0], together.probs[row])
        torch.testing.assert_close(alone.scores(logits[part], 2)[0], scores[row])


def test_keep_reorders_and_drops() -> None:
    cases = list(CASES.values())
    order = [9, 2, 5, 10, 0]
    tree, logits = random_tree(len(cases)), random_logits(len(cases))
    sampler = sampler_of(cases)
    expected = sampler.view(tree, logits).choice[order]
    sampler.keep(order)
    part = TokenTree(tree.tokens[order], tree.parents[order], tree.valid[order])
    assert torch.equal(sampler.view(part, logits[order]).choice, expected)
    sampler.keep([])
    sampler.admit(SamplingParams(), PROMPT, seed=0, eos_ids=EOS)
    root = TokenTree.root_only(torch.tensor([3]))
    assert sampler.view(root, logits[:1, :1]).choice.tolist() == [[int(logits[0, 0].argmax())]]


def test_prefill_is_the_same_formula() -> None:
    """The first token drawn at the end of the prompt is the one drawn as a child of its tail."""
    logits = random_logits(1, 1)
    sampler = Sampler(VOCAB, torch.device("cpu"))
    case = CASES["top-k-penalty"]
    sampler.admit(SamplingParams(**case), PROMPT, seed=3, eos_ids=EOS)
    view = sampler.view(TokenTree.root_only(torch.tensor([PROMPT[-1]])), logits, slice(0, 1))
    wanted = Settings(**case, eos_ids=EOS, seed=3)
    expected = processors_of(wanted, len(PROMPT))(torch.tensor([PROMPT]), logits[0])
    assert view.choice.tolist() == [[int(expected.argmax())]]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_row_fails_alone(poison: float) -> None:
    cases = [*CASES.values(), *CASES.values()]
    tree, logits = random_tree(len(cases)), random_logits(len(cases))
    healthy = sampler_of(cases).view(tree, logits)
    bad = logits.clone()
    bad[: len(CASES), 4, 7] = poison
    padded = ~tree.valid
    bad[padded] = poison
    view = sampler_of(cases).view(tree, bad)
    failed = view.failed & tree.valid
    assert failed.any(-1).tolist() == [True] * len(CASES) + [False] * len(CASES)
    assert failed[: len(CASES), 4].all() and failed.sum() == len(CASES)
    assert ((view.choice >= 0) & (view.choice < VOCAB)).all()
    kept = slice(len(CASES), None)
    assert torch.equal(view.choice[kept][~padded[kept]], healthy.choice[kept][~padded[kept]])
    torch.testing.assert_close(view.probs[kept][~padded[kept]], healthy.probs[kept][~padded[kept]])


class FullSizeOps(TorchDispatchMode):
    """Records the operations that touch a tensor of at least ``size`` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names = size, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(arg, Tensor) and arg.numel() >= self.size for arg in args):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_greedy_costs_one_search() -> None:
    tree, logits = random_tree(3), random_logits(3, dtype=torch.bfloat16)
    sampler = sampler_of([{}, {}, {}])
    with FullSizeOps(logits.numel()) as ops:
        view = sampler.view(tree, logits)
    # The gather reads what was chosen.
    assert ops.names == ["argmax.default", "gather.default"]
    assert torch.equal(view.choice, logits.float().argmax(-1))


def test_bias_outside_the_vocabulary_is_refused() -> None:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    with pytest.raises(ConfigError, match="logit_bias names token 150"):
        sampler.admit(SamplingParams(logit_bias={150: 1.0}), PROMPT, seed=0, eos_ids=EOS)


def test_prompt_tokens_the_head_does_not_know_are_no_matter() -> None:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    params = SamplingParams(repetition_penalty=2.0, min_new_tokens=1)
    sampler.admit(params, [3, VOCAB + 4], seed=0, eos_ids=(VOCAB + 5,))
    logits = torch.zeros(1, 1, VOCAB)
    logits[..., 3], logits[..., 4] = 3.0, 2.0
    view = sampler.view(TokenTree.root_only(torch.tensor([VOCAB + 4])), logits)
    assert view.choice.tolist() == [[4]]
