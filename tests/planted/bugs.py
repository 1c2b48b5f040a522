"""Bugs of the field, planted one at a time: each must make a named existing test fail.

A bug is a small, plausible change of product code, made in process. Its oracle is a test of this
suite with its arguments; it passes on the code as it is, or catching the bug would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.cache.joint import JointCache
from jakiro.cache.kv_cache import KVCache
from jakiro.cache.mask import Window, attendable
from jakiro.cache.store import Move, Store
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.feature import FeatureDrafter
from jakiro.engine.batch import Batch
from jakiro.engine.request import Request
from jakiro.sampling import draws, nodes, process
from jakiro.sampling.draws import WithoutReplacement
from jakiro.sampling.nodes import Nodes
from jakiro.sampling.noise import gumbel, position_keys
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView, Sampler
from jakiro.sampling.shortlist import Filters, Kept
from jakiro.target import target
from jakiro.tree import grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import rejection
from jakiro.verify.traversal import _State
from tests.conformance import test_definitions, test_extremes, test_identity, test_in_law
from tests.engine import test_stops
from tests.verify import test_vectorised

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """``oracle(*arguments)`` must fail once ``plant`` has been called."""

    name: str
    plant: Plant
    oracle: Callable[..., None]
    arguments: Sequence[Any]

    @property
    def oracle_name(self) -> str:
        module = self.oracle.__module__.removeprefix("tests.")
        return f"{module}::{self.oracle.__name__}[{'-'.join(map(_word, self.arguments))}]"


def _word(argument: Any) -> str:
    """An argument as it looks in the name of a parametrised test."""
    if isinstance(argument, tuple):
        return "-".join(map(str, argument))
    if isinstance(argument, TreePlan):
        return argument.kind
    return f"T{argument.temperature}" if isinstance(argument, SamplingParams) else str(argument)


def raw_bonus(patch: pytest.MonkeyPatch) -> None:
    """After a leaf, the token is drawn from logits that nothing has processed."""
    honest = Sampler.view

    def view(self: Sampler, tree: TokenTree, logits: Tensor, rows: slice | None = None) -> NodeView:
        found = honest(self, tree, logits, rows)
        part = slice(None) if rows is None else rows
        where = self._lengths[part, None] + tree.depth
        noise = gumbel(position_keys(self._keys[part, None], where), logits.shape[-1])
        is_inner = torch.zeros_like(tree.valid).scatter(1, tree.parents.clamp_min(0), tree.valid)
        choice = torch.where(is_inner, found.choice, (logits + noise).argmax(-1))
        return NodeView(choice, found.failed, found.distribution, found.draws)

    patch.setattr(Sampler, "view", view)


def temperature_twice(patch: pytest.MonkeyPatch) -> None:
    honest = Nodes._warped

    def warped(self: Nodes, rows: Any) -> Tensor:
        return honest(self, rows) / self.settings.temperature[rows]

    patch.setattr(Nodes, "_warped", warped)


def top_p_before_top_k(patch: pytest.MonkeyPatch) -> None:
    def kept(logits: Tensor, filters: Filters) -> list[Kept]:
        values, ids = logits.sort(dim=-1, descending=True)
        probs = values.softmax(-1)
        keep = probs.cumsum(-1) - probs < filters.top_p
        keep &= torch.arange(values.shape[-1]) < filters.top_k
        keep &= probs >= filters.min_p * probs[:, :1]
        keep[:, 0] = True
        return [Kept(slice(None), ids, values, keep)]

    patch.setattr(nodes, "kept", kept)


def penalty_without_the_path(patch: pytest.MonkeyPatch) -> None:
    def nothing(tree: TokenTree, vocab_size: int) -> Tensor:
        return torch.zeros(*tree.tokens.shape, vocab_size)

    patch.setattr(process, "path_counts", nothing)


def sibling_visible(patch: pytest.MonkeyPatch) -> None:
    def mask(
        tree: TokenTree, lengths: list[int], span: int, window: Window | None = None
    ) -> Tensor:
        siblings = tree.parents[:, :, None] == tree.parents[:, None]
        return attendable(tree.ancestors | siblings, lengths, span)

    patch.setattr(target, "tree_mask", mask)


def slot_used_as_position(patch: pytest.MonkeyPatch) -> None:
    def slots(tree: TokenTree, lengths: list[int]) -> Tensor:
        return torch.tensor(lengths)[:, None] + torch.arange(tree.num_nodes)

    patch.setattr(target, "positions", slots)


def window_by_slot(patch: pytest.MonkeyPatch) -> None:
    def mask(
        tree: TokenTree, lengths: list[int], span: int, window: Window | None = None
    ) -> Tensor:
        seen = attendable(tree.ancestors, lengths, span)
        if window is None:
            return seen
        query = torch.tensor(lengths)[:, None, None] + torch.arange(tree.num_nodes)[:, None]
        return seen & (query - torch.arange(span) < window.size)

    patch.setattr(target, "tree_mask", mask)


def overlapping_gather(patch: pytest.MonkeyPatch) -> None:
    """Rows are moved one after the other, and one is overwritten before it is read."""

    def move(self: Store, moves: list[Move]) -> None:
        for row, source, slot in reversed(moves):
            self.data[:, row, :, slot] = self.data[:, row, :, source]

    patch.setattr(Store, "move", move)


def one_row_short(patch: pytest.MonkeyPatch) -> None:
    honest = KVCache.commit

    def commit(self: KVCache, verdict: Verdict) -> None:
        honest(self, verdict)
        both = zip(self.lengths, verdict.paths, strict=True)
        self.lengths = [length - (len(path) > 2) for length, path in both]

    patch.setattr(KVCache, "commit", commit)


def amateur_left_behind(patch: pytest.MonkeyPatch) -> None:
    """Only the first of two models moves the entries of the accepted path to their places."""

    def commit_paths(self: JointCache, paths: list[list[int]]) -> None:
        KVCache.commit_paths(self, paths)
        for cache in self.beside:
            cache.commit_paths([list(range(len(path))) for path in paths])

    patch.setattr(JointCache, "commit_paths", commit_paths)


def eos_uncut(patch: pytest.MonkeyPatch) -> None:
    """The end is looked for behind the last token of a block only."""

    def take(self: Request, tokens: list[int]) -> list[int]:
        self.token_ids += tokens
        if self._ends_with(tokens[-1]):
            self.finish("stop")
        elif self.num_left <= 0:
            self.finish("length")
        return tokens

    patch.setattr(Request, "take", take)


def max_new_overshoot(patch: pytest.MonkeyPatch) -> None:
    """Blocks are as deep as the plan, and the length is looked at between them."""
    honest = Batch.request

    def request(self: Batch) -> DraftRequest:
        asked = honest(self)
        deep = [asked.plan.depth] * len(self.rows)
        return DraftRequest(asked.roots, asked.lengths, deep, asked.plan, asked.noise)

    def take(self: Request, tokens: list[int]) -> list[int]:
        for token in tokens:
            self.token_ids.append(token)
            if self._ends_with(token):
                self.finish("stop")
        if self.num_left <= 0:
            self.finish("length")
        return tokens

    patch.setattr(Batch, "request", request)
    patch.setattr(Request, "take", take)


def stale_drafter_rows(patch: pytest.MonkeyPatch) -> None:
    """A row that was made from a predicted feature stays in the draft cache."""
    honest = FeatureDrafter.draft

    def draft(self: FeatureDrafter, request: DraftRequest) -> TokenTree:
        tree = honest(self, request)
        self._cache.lengths = [length + 1 for length in self._cache.lengths]
        return tree

    patch.setattr(FeatureDrafter, "draft", draft)


def features_of_the_wrong_nodes(patch: pytest.MonkeyPatch) -> None:
    """Stale in content: the rows of the first nodes are fed, not those of the accepted path."""
    honest = FeatureDrafter.accept

    def accept(self: FeatureDrafter, tree: TokenTree, verdict: Verdict, out: Any) -> None:
        honest(self, tree, verdict, out)
        for row, path in enumerate(verdict.paths):
            self._pending._features[row][-1] = out.features[row, : len(path)]

    patch.setattr(FeatureDrafter, "accept", accept)


def finished_row_advances(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batch, "leave", lambda self, drafter: [])


def noise_by_draw_count(patch: pytest.MonkeyPatch) -> None:
    """A generator that moves on with every draw, drafted or not."""
    num_draws = 0

    def keys(requests: Tensor, positions: Tensor) -> Tensor:
        nonlocal num_draws
        draws = torch.arange(positions.numel()).view_as(positions) + num_draws
        num_draws += positions.numel()
        return position_keys(requests, draws)

    patch.setattr(nodes, "position_keys", keys)


def draft_noise_one_late(patch: pytest.MonkeyPatch) -> None:
    """Drafts look at the noise of the next position: no text changes, only what is accepted."""
    honest = Sampler.scores
    patch.setattr(Sampler, "scores", lambda self, logits, depth: honest(self, logits, depth + 1))


def sampled_bonus_from_raw_logits(patch: pytest.MonkeyPatch) -> None:
    """After a chain that was accepted whole, the processors are forgotten."""
    honest = Sampler.view

    def view(self: Sampler, tree: TokenTree, logits: Tensor, rows: slice | None = None) -> NodeView:
        found = honest(self, tree, logits, rows)
        if rows is not None:
            return found
        raw = logits[:, -1].softmax(-1)
        choice = found.choice.clone()
        choice[:, -1] = found.draws.draw(raw, tree.depth[:, -1])
        return NodeView(choice, found.failed, found.distribution, found.draws)

    patch.setattr(Sampler, "view", view)


def draft_unnormalised_after_a_rejection(patch: pytest.MonkeyPatch) -> None:
    """The next sibling is tried by the law that the first was drawn from."""
    patch.setattr(rejection, "without", lambda draft, token: draft)


def residual_unnormalised(patch: pytest.MonkeyPatch) -> None:
    """What a rejection leaves of the target is not made a law again."""
    patch.setattr(rejection, "excess", lambda target, draft: (target - draft).clamp_min(0))


def siblings_out_of_draw_order(patch: pytest.MonkeyPatch) -> None:
    """They are tried from the least to the most probable, as a tidy drafter might sort them."""
    honest = WithoutReplacement._drawn

    def drawn(*arguments: Any) -> tuple[Tensor, grow.Nodes]:
        tokens, made = honest(*arguments)
        order = tokens.argsort(-1)
        return tokens.gather(-1, order), grow.Nodes(*(each.gather(-1, order) for each in made))

    patch.setattr(WithoutReplacement, "_drawn", drawn)


def beams_by_probability(patch: pytest.MonkeyPatch) -> None:
    """Which of the drawn nodes stay is decided by how probable they are."""
    honest = WithoutReplacement._drawn

    def drawn(*arguments: Any) -> tuple[Tensor, grow.Nodes]:
        tokens, made = honest(*arguments)
        return tokens, grow.Nodes(made.scores, made.scores)

    patch.setattr(WithoutReplacement, "_drawn", drawn)


def many_candidates_as_one(patch: pytest.MonkeyPatch) -> None:
    """Each of the k candidates is accepted as if it were the only one."""
    # The package has a function of that name.
    module = import_module("jakiro.verify.kseq")
    patch.setattr(module, "_hit", lambda overlap, number: torch.ones_like(overlap))


def listed_as_drawn(patch: pytest.MonkeyPatch) -> None:
    """The child beside the most probable ones is the next of them, and judged as if drawn."""
    patch.setattr(draws, "_picked", lambda law, uniforms: law.argmax(-1, keepdim=True))


def weight_without_the_path(patch: pytest.MonkeyPatch) -> None:
    """A node is weighed by its own token alone."""
    honest = _State.enter

    def enter(self: Any, rows: Tensor, parents: Tensor, children: Tensor) -> None:
        kept = self.weight
        self.weight = torch.ones_like(kept)
        honest(self, rows, parents, children)
        kept[rows, children] = self.weight[rows, children]
        self.weight = kept

    patch.setattr(_State, "enter", enter)


def identity(
    setting: str, tree: str = "dynamic", size: int = 3, family: str = "llama"
) -> tuple[Callable[..., None], Sequence[Any]]:
    """A cell of the identity suite as an oracle."""
    cell = (family, "match", "jakiro/wide", tree, size, setting)
    return test_identity.test_text_is_that_of_plain_decoding, [cell]


CACHES = test_extremes.test_caches_equal_a_fresh_prefill_after_every_step
ALONE = test_extremes.test_a_row_alone_equals_the_row_in_a_batch
ANCHOR = test_extremes.test_the_target_as_drafter_is_always_right
LAW = test_in_law.test_texts_have_the_law_of_the_target
FULL = test_in_law.test_a_drafter_that_is_the_target_is_never_refused

BUGS = (
    Bug("raw bonus", raw_bonus, *identity("top_p")),
    Bug("temperature twice", temperature_twice, *identity("top_p")),
    Bug("top-p before top-k", top_p_before_top_k, *identity("counted")),
    Bug(
        "penalty without the node's path",
        penalty_without_the_path,
        *identity("penalised", "static"),
    ),
    Bug("a sibling visible", sibling_visible, *identity("greedy")),
    Bug("slot used as position", slot_used_as_position, *identity("greedy")),
    Bug("window by slot", window_by_slot, *identity("greedy", family="mistral")),
    Bug("overlapping gather", overlapping_gather, CACHES, ["jakiro", "llama"]),
    Bug("one row short", one_row_short, CACHES, ["jakiro", "llama"]),
    Bug(
        "the amateur left behind",
        amateur_left_behind,
        test_definitions.test_all_caches_hold_the_text_and_nothing_else,
        [],
    ),
    Bug("EOS uncut", eos_uncut, test_stops.test_eos_cuts_an_accepted_block, [1, 6]),
    Bug("max_new overshoot", max_new_overshoot, test_stops.test_max_new_tokens_is_exact, [9, 4]),
    Bug("stale drafter rows", stale_drafter_rows, CACHES, ["jakiro", "llama"]),
    Bug("features of the wrong nodes", features_of_the_wrong_nodes, CACHES, ["eagle2", "llama"]),
    Bug("a finished row advancing", finished_row_advances, ALONE, ["none"]),
    Bug("noise by draw count", noise_by_draw_count, *identity("top_p")),
    Bug(
        "draft noise one position late",
        draft_noise_one_late,
        ANCHOR,
        [TreePlan.chain(4), SamplingParams(temperature=1.3, top_p=0.9)],
    ),
    Bug("raw bonus of a drawn draft", sampled_bonus_from_raw_logits, FULL, [("token", "chain")]),
    Bug(
        "draft unnormalised after a rejection",
        draft_unnormalised_after_a_rejection,
        test_vectorised.test_recursive_rejection_accepts_the_published_share,
        [],
    ),
    Bug("siblings out of draw order", siblings_out_of_draw_order, LAW, [("rrs", "static")]),
    Bug("residual not normalised", residual_unnormalised, LAW, [("rrs", "static")]),
    Bug("beams kept by probability", beams_by_probability, LAW, [("rrs", "beam")]),
    Bug("many candidates as one", many_candidates_as_one, LAW, [("kseq", "static")]),
    Bug("listed and judged as drawn", listed_as_drawn, LAW, [("hybrid", "static")]),
    Bug("weight without the path", weight_without_the_path, LAW, [("traversal", "static")]),
)


def catches(bug: Bug) -> str:
    """What the oracle says under the bug, in one line; empty if it says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        try:
            bug.oracle(*bug.arguments)
        except AssertionError as error:
            return (str(error) or "assertion failed").splitlines()[0]
    return ""
