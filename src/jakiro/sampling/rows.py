"""The requests of a batch as the sampler sees them, and their settings as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jakiro.errors import LARGEST_INT
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.shortlist import Filters
from jakiro.typing import LogitsProcessor

Index = Tensor | slice
"""Which rows of a batch: ``slice(None)`` for all of them, which costs no copy."""


def chosen(values: Tensor, rows: Index) -> Tensor:
    """``values[rows]``, without an operation where these are all."""
    return values if isinstance(rows, slice) else values[rows]


def joined(groups: Sequence[tuple[Index, Tensor]], num_rows: int) -> Tensor:
    """[b, ...] from the parts [g, ...] of groups that make up all ``num_rows`` = b."""
    first = groups[0][1]
    if len(groups) == 1:
        return first
    whole = first.new_empty(num_rows, *first.shape[1:])
    for rows, part in groups:
        whole[rows] = part
    return whole


@dataclass(eq=False)
class Row:
    """One request: its settings and its text so far, the root of the next tree included."""

    params: SamplingParams
    history: list[int]
    prompt_length: int
    stop_ids: tuple[int, ...]
    """What ``min_new_tokens`` bans."""
    processors: tuple[LogitsProcessor, ...]
    errors: dict[tuple[int, ...], str] = field(default_factory=dict, init=False)
    """What processors raised in the last tree, by the tokens behind ``history``."""

    @property
    def num_generated(self) -> int:
        return len(self.history) - self.prompt_length

    @property
    def is_penalised(self) -> bool:
        params = self.params
        penalties = params.presence_penalty, params.frequency_penalty
        return params.repetition_penalty != 1 or penalties != (0, 0)

    @property
    def is_filtered(self) -> bool:
        params = self.params
        return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of b rows, made once whenever rows come or go. V is the vocabulary.

    The flags spare whole stages; the three groups part the rows by how their token is chosen (None:
    there are no such rows).
    """

    greedy: Index | None
    free: Index | None
    """Sampled from the whole vocabulary."""
    filtered: Index | None
    temperature: Tensor
    """[b, 1, 1] float64; 1 for greedy rows."""
    is_tempered: bool
    """Whether one of them is not 1."""
    top_k: Tensor
    """[b, 1] int64."""
    top_p: Tensor
    """[b, 1] float64."""
    min_p: Tensor
    """[b, 1] float64."""
    mass_from: int
    """The largest top-k of a row with top-p, V where that is off; 0: there is no such row."""
    penalties: tuple[Tensor, Tensor, Tensor] | None
    """Repetition, presence and frequency penalty, each [b, 1, 1] float64."""
    bias: Tensor | None
    """[b, 1, V] float32."""
    banned: Tensor | None
    """[b, 1, V] bool: what ``min_new_tokens`` bans."""
    min_lengths: Tensor
    """[b, 1] int64: a token at an earlier position is under the ban."""

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int, device: torch.device) -> Settings:
        """The settings of ``rows``, in their order."""
        params = [row.params for row in rows]
        filtered = [row.is_filtered for row in rows]

        def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        def group(members: list[bool]) -> Index | None:
            if all(members):
                return slice(None) if members else None
            chosen = [row for row, member in enumerate(members) if member]
            return torch.tensor(chosen, device=device) if chosen else None

        def cube(values: Sequence[float]) -> Tensor:
            return column(values)[:, :, None]

        penalties = None
        if any(row.is_penalised for row in rows):
            penalties = (
                cube([p.repetition_penalty for p in params]),
                cube([p.presence_penalty for p in params]),
                cube([p.frequency_penalty for p in params]),
            )
        return cls(
            greedy=group([p.is_greedy for p in params]),
            free=group([not p.is_greedy and not f for p, f in zip(params, filtered, strict=True)]),
            filtered=group([not p.is_greedy and f for p, f in zip(params, filtered, strict=True)]),
            temperature=cube([p.temperature or 1.0 for p in params]),
            is_tempered=any(p.temperature not in (0, 1) for p in params),
            top_k=column([p.top_k or vocab_size for p in params], torch.int64),
            top_p=column([p.top_p if p.top_p < 1 else torch.inf for p in params]),
            min_p=column([p.min_p for p in params]),
            mass_from=max((p.top_k or vocab_size for p in params if p.top_p < 1), default=0),
            penalties=penalties,
            bias=_bias(params, vocab_size, device),
            banned=_banned(rows, vocab_size, device),
            min_lengths=column(
                [min(row.prompt_length + row.params.min_new_tokens, LARGEST_INT) for row in rows],
                torch.int64,
            ),
        )

    def of_tokens(self, ids: Tensor) -> Settings:
        """The settings where V are only the tokens ``ids``."""
        if self.bias is None and self.banned is None:
            return self
        bias, banned = (
            None if column is None else column[..., ids] for column in (self.bias, self.banned)
        )
        return replace(self, bias=bias, banned=banned)

    def filters(self, num_nodes: int, num_tokens: int) -> Filters:
        """The filters of the nodes of the filtered rows, ``num_nodes`` each, row after row, over
        ``num_tokens`` tokens."""
        assert self.filtered is not None
        top_k, top_p, min_p = (
            column[self.filtered].repeat_interleave(num_nodes, 0)
            for column in (self.top_k, self.top_p, self.min_p)
        )
        return Filters(top_k, top_p, min_p, self.mass_from >= num_tokens)


def _bias(params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> Tensor | None:
    if not any(p.logit_bias for p in params):
        return None
    bias = torch.zeros(len(params), 1, vocab_size)
    for row, p in enumerate(params):
        for token, value in p.logit_bias.items():
            bias[row, 0, token] = value
    return bias.to(device)


def _banned(rows: Sequence[Row], vocab_size: int, device: torch.device) -> Tensor | None:
    if not any(row.params.min_new_tokens and row.stop_ids for row in rows):
        return None
    banned = torch.zeros(len(rows), 1, vocab_size, dtype=torch.bool)
    for index, row in enumerate(rows):
        banned[index, 0, [token for token in row.stop_ids if token < vocab_size]] = True
    return banned.to(device)
