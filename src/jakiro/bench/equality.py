"""Are two texts equal, and if not: rounding or a bug?

Two ways of computing the same logits round differently, so a choice between two tokens that are
nearly tied can fall either way. A first difference is a *near-tie* when moving the raw logit of
either token by the rounding bound of the computing type is enough to choose the other, or moving
those that filters let in as well. Anything else is a bug. After a first difference the texts are
answers to different questions, so nothing later is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jakiro.sampling.noise import gumbel, noise_keys
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView, Sampler
from jakiro.tree.token_tree import TokenTree

FLOAT32_BOUND = 1e-4
FLOAT64_BOUND = 1e-9
NUM_ROUNDINGS = 4
"""For half precisions the bound is this many roundings of the largest logit."""
MOST_RIVALS = 4
"""Tokens that may be less likely, all of them, than they were said to be."""
FARTHEST = 1000.0
"""Below the largest: a logit that is farther is no logit but a mask."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two texts first differ; ``position`` counts generated tokens from 0."""

    position: int
    expected: int | None
    """None: the text had ended."""
    found: int | None
    margin: float | None
    """By how much the choice beats the lesser of the two tokens, noise included, in units of
    processed logits; None where a filter excludes that token or a text had ended."""
    is_near_tie: bool

    @property
    def outcome(self) -> Literal["near-tie", "bug"]:
        return "near-tie" if self.is_near_tie else "bug"


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Index of the first token that differs; None for equal texts."""
    for position, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return position
    return None if len(expected) == len(found) else min(len(expected), len(found))


def rounding_bound(dtype: torch.dtype, logits: Tensor) -> float:
    """How far a raw logit may move when it is computed in another order."""
    if dtype == torch.float64:
        return FLOAT64_BOUND
    if dtype == torch.float32:
        return FLOAT32_BOUND
    # What a model masks it sets to something huge, which is no sum that was rounded.
    said = logits.masked_fill(logits <= logits.max() - FARTHEST, 0.0)
    return NUM_ROUNDINGS * torch.finfo(dtype).eps * float(said.abs().max())


@dataclass(frozen=True, eq=False)
class Judge:
    """Compares texts of one request. Its own logits come from ``model(ids)`` on the whole text at
    once: no cache, no tree, no batch."""

    model: Any
    """A causal LM of ``transformers``."""
    eos_ids: tuple[int, ...] = ()
    """What ``min_new_tokens`` holds back."""

    def compare(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        expected: Sequence[int],
        found: Sequence[int],
    ) -> Divergence | None:
        """The first difference between two texts of ``prompt_ids``; None if they are equal.

        ``params.seed`` must be the seed that both texts were sampled with.
        """
        position = first_difference(expected, found)
        if position is None:
            return None
        if position in (len(expected), len(found)):
            one = expected[position] if position < len(expected) else None
            other = found[position] if position < len(found) else None
            return Divergence(position, one, other, None, is_near_tie=False)
        logits = self._logits(prompt_ids, expected[:position])
        pair = (expected[position], found[position])
        return self._verdict(prompt_ids, expected[:position], params, pair, logits)

    def recompute(
        self, prompt_ids: Sequence[int], params: SamplingParams, tokens: Sequence[int]
    ) -> Divergence | None:
        """The first of ``tokens`` that the model itself would not have chosen, given all before."""
        logits = self._logits(prompt_ids, tokens[:-1])
        chosen = self._view(prompt_ids, tokens[:-1], params, logits).choice[0].tolist()
        position = first_difference(chosen, tokens)
        if position is None:
            return None
        pair = (chosen[position], tokens[position])
        part = logits[: position + 1]
        return self._verdict(prompt_ids, tokens[:position], params, pair, part)

    @torch.no_grad()
    def _logits(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """[len(tokens) + 1, V] raw logits after the prompt and after each token."""
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([[*prompt_ids, *tokens]], device=device)
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[0, len(prompt_ids) - 1 :]

    def _view(
        self,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        params: SamplingParams,
        logits: Tensor,
    ) -> NodeView:
        """The processed logits of a text, seen as a chain below the last prompt token."""
        assert params.seed is not None, "texts are compared with the seed they were sampled with"
        sampler = Sampler(logits.shape[-1], logits.device)
        sampler.admit(params, list(prompt_ids), seed=params.seed, eos_ids=self.eos_ids)
        nodes = torch.tensor([[prompt_ids[-1], *tokens]], device=logits.device)
        parents = torch.arange(-1, nodes.shape[1] - 1, device=logits.device)[None]
        tree = TokenTree(nodes, parents, torch.ones_like(nodes, dtype=torch.bool))
        return sampler.view(tree, logits[None].double())

    def _verdict(
        self,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        params: SamplingParams,
        pair: tuple[int, int],
        logits: Tensor,
    ) -> Divergence:
        """Judge the choice after ``tokens`` between ``pair`` (expected, found), given ``logits``
        [len(tokens) + 1, V]."""
        reachable = [
            self._reaches(prompt_ids, tokens, params, token, other, logits)
            for token, other in (pair, pair[::-1])
        ]
        noisy = self._noisy(prompt_ids, tokens, params, logits)
        margin = float(noisy.max() - noisy[list(pair)].min())
        return Divergence(
            position=len(tokens),
            expected=pair[0],
            found=pair[1],
            margin=margin if margin < float("inf") else None,
            is_near_tie=all(reachable),
        )

    def _reaches(
        self,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        params: SamplingParams,
        token: int,
        other: int,
        logits: Tensor,
    ) -> bool:
        """Whether rounding can make ``token`` the choice after ``tokens`` in place of ``other``:
        by what it is itself, or by what the others are. At the edge of a filter one that is less
        likely makes room for the next, which may have to leave as well."""
        bound = rounding_bound(self.model.dtype, logits[-1])

        def choice(moved: Tensor) -> int:
            return int(self._view(prompt_ids, tokens, params, moved).choice[0, -1])

        raised, lowered = (logits.to(torch.float64, copy=True) for _ in range(2))
        raised[-1, token] += bound
        if choice(raised) == token:
            return True
        before: set[int] = set()
        while other != token and other not in before and len(before) < MOST_RIVALS:
            before.add(other)
            lowered[-1, other] -= bound
            other = choice(lowered)
        return other == token

    def _noisy(
        self,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        params: SamplingParams,
        logits: Tensor,
    ) -> Tensor:
        """[V] float64: what the argmax is taken of after ``tokens``, up to a constant."""
        if params.is_greedy:
            shown = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
            return self._view(prompt_ids, tokens, shown, logits).probs[0, -1].log()
        position = len(prompt_ids) + len(tokens)
        words = [torch.tensor([word]) for word in (params.seed, 0, position)]
        noise = gumbel(noise_keys(words[0], words[1], words[2]), logits.shape[-1])[0]
        view = self._view(prompt_ids, tokens, params, logits)
        return view.probs[0, -1].log() + noise.to(logits.device)
