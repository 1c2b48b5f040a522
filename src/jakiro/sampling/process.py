"""The one door from logits to a choice.

Each node of a tree is processed with its own path, in this order: logit bias, repetition penalty,
presence and frequency penalty, ``min_new_tokens``, extra processors, temperature, top-k, top-p,
min-p. The choice is the argmax of the result plus the noise of the chosen token's position, so it
depends on the request and its text only, never on what was drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.sampling.draws import DraftDraws, RuleDraws
from jakiro.sampling.nodes import AS_SAID, LevelNoise, Nodes, Sharpness
from jakiro.sampling.noise import request_keys
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.rows import Row, Settings
from jakiro.sampling.stages import apply_processors, path_counts, penalise
from jakiro.tree.token_tree import TokenTree
from jakiro.typing import LogitsProcessor


class ListedView(NamedTuple):
    """Choices and failures as numbers of the host, [B][N] each; ``failed`` is 1 or 0."""

    choice: list[list[int]]
    failed: list[list[int]]


@dataclass(frozen=True, eq=False)
class NodeView:
    """What a rule may know of the target at each node of a tree."""

    choice: Tensor
    """[B, N] int64: the token the target emits after each node."""
    failed: Tensor
    """[B, N] bool: nodes whose processed logits have no finite maximum (NaN, or no token left);
    their choices mean nothing."""
    distribution: Callable[[], Tensor]
    """Computes ``probs``."""
    draws: RuleDraws
    """For rules that draw."""

    @cached_property
    def listed(self) -> ListedView:
        """On the host, in one transfer."""
        return ListedView(*torch.stack([self.choice, self.failed]).tolist())

    @cached_property
    def probs(self) -> Tensor:
        """[B, N, V]: the processed distribution, one-hot for greedy rows."""
        return self.distribution()


class Sampler:
    """The sampling state of all rows of a batch: settings, texts so far and noise keys.

    A row's text includes the root of the next tree. At prefill that is the last prompt token, and
    the tree is the root alone.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rows: list[Row] = []
        self._settings = Settings.of([], vocab_size, device)
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(0, dtype=torch.int64, device=device)
        # What the penalties look at: which tokens occur at all, and how often among the generated.
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(0, vocab_size, device=device)
        self._rewind()

    def __getstate__(self) -> dict[str, Any]:
        """What scores drafts in another process: no texts, and so neither penalties nor processors,
        which drafts do without."""
        rows = [replace(row, history=[], processors=()) for row in self._rows]
        nothing = Sampler(self._vocab_size, self._device).__dict__
        kept = {name: self.__dict__[name] for name in ("_settings", "_keys", "_lengths")}
        levels = LevelNoise(self._keys, self._lengths, self._vocab_size)
        return {**nothing, **kept, "_rows": rows, "_levels": levels}

    def check(self, params: SamplingParams) -> None:
        """Raise ``ConfigError`` if ``logit_bias`` names a token outside the vocabulary."""
        for token in params.logit_bias:
            if token >= self._vocab_size:
                raise ConfigError(
                    f"logit_bias names token {token}, but the target chooses among "
                    f"{self._vocab_size} tokens; allowed ids are 0..{self._vocab_size - 1}"
                )

    def admit(
        self,
        params: SamplingParams,
        prompt: list[int],
        *,
        seed: int,
        eos_ids: tuple[int, ...],
        choice_index: int = 0,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        """Append a row. ``seed`` is the one to use, whatever ``params`` says; ``eos_ids`` are
        banned, like ``params.stop_token_ids``, until ``min_new_tokens`` are out. Raises as
        ``check`` does.
        """
        self.check(params)
        stop_ids = tuple({*eos_ids, *params.stop_token_ids})
        row = Row(params, list(prompt), len(prompt), stop_ids, tuple(processors))
        self._rows.append(row)
        words = torch.tensor([[seed], [choice_index], [len(prompt)]], device=self._device)
        self._keys = torch.cat([self._keys, request_keys(words[0], words[1])])
        self._lengths = torch.cat([self._lengths, words[2]])
        self._seen = torch.cat([self._seen, self._seen.new_zeros(1, self._vocab_size)])
        self._counts = torch.cat([self._counts, self._counts.new_zeros(1, self._vocab_size)])
        if row.is_penalised:
            self._seen[-1, self._known(prompt)] = True
        self._refresh()

    def extend(self, row: int, tokens: list[int]) -> None:
        """Append emitted ``tokens`` to the text of ``row``; the last one is the next root."""
        self._rows[row].history.extend(tokens)
        self._lengths[row].add_(len(tokens))
        if self._rows[row].is_penalised:
            ids = self._known(tokens)
            self._seen[row, ids] = True
            self._counts[row].index_add_(0, ids, self._counts.new_ones(len(ids)))
        if len(self._rows) == 1:
            self._levels.advance(len(tokens))
        else:
            self._rewind()

    def failure(self, row: int, tokens: list[int]) -> str:
        """Why the last view found nothing to choose after the text of ``row`` and ``tokens``."""
        known = self._rows[row].errors.get(tuple(tokens))
        return known or "the logits of this request are NaN, or leave no token to choose"

    def keep(self, rows: list[int]) -> None:
        """Keep only ``rows``, in that order."""
        self._rows = [self._rows[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._keys, self._lengths = self._keys[index], self._lengths[index]
        self._seen, self._counts = self._seen[index], self._counts[index]
        self._refresh()

    def view(self, tree: TokenTree, logits: Tensor, rows: slice | None = None) -> NodeView:
        """The target's choices at the nodes of ``tree`` [B, N], from its raw ``logits`` [B, N, V]
        (left as they are). ``rows``: tree and logits are of these rows only."""
        part = slice(None) if rows is None else rows
        settings = self._settings if rows is None else self._settings_of(part)
        processed = self._process(tree, logits, part, settings)
        nodes = self._nodes(processed, tree.depth, part, settings)
        choice = nodes.choice()
        # What was chosen is infinite or NaN only where there is nothing better, or any NaN.
        best = processed.gather(-1, choice[..., None])[..., 0]
        draws = RuleDraws(nodes.keys, nodes.lengths)
        return NodeView(choice, (best - best) != 0, nodes.probs, draws)

    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        """Log scores [B, K, D] (float32) of children at ``depth`` >= 1, from draft logits
        [B, K, D] of the tokens ``ids``: the ``DraftNoise`` protocol of drafters.

        A drafter whose logits are the target's scores the target's own choice best. Penalties and
        extra processors, which depend on the path, are left out.
        """
        return self._draft_nodes(logits, depth, ids).scores(sharpness)

    def sampled_drafts(self, way: type[DraftDraws]) -> DraftDraws:
        """What drafts are told instead of ``scores`` where their nodes are to be drawn."""
        return way(self._draft_nodes, self._vocab_size)

    def _draft_nodes(self, logits: Tensor, depth: int, ids: Tensor | None) -> Nodes:
        """Draft logits [B, K, D] of children at ``depth``, the tokens ``ids``, processed as far as
        their text is not needed."""
        level, keys, lengths = depth - 1, self._keys, self._lengths
        settings = self._settings if ids is None else self._settings.of_tokens(ids)
        processed = self._biased(_widened(logits), settings)
        processed = self._unstopped(processed, level, slice(None), settings)
        return Nodes(processed, level, settings, keys, lengths, self._levels, ids)

    def _process(self, tree: TokenTree, logits: Tensor, part: slice, settings: Settings) -> Tensor:
        """All stages before the temperature; ``logits`` itself where there are none."""
        rows = self._rows[part]
        if not isinstance(settings.greedy, slice):
            logits = _widened(logits)
        logits = self._biased(logits, settings)
        if settings.penalties is not None:
            on_path = path_counts(tree, logits.shape[-1])
            seen, counts = self._seen[part], self._counts[part]
            logits = penalise(_widened(logits), on_path, seen, counts, settings.penalties)
        logits = self._unstopped(logits, tree.depth, part, settings)
        if any(row.processors for row in rows):
            logits = apply_processors(_widened(logits), tree, rows)
        return logits

    def _biased(self, logits: Tensor, settings: Settings) -> Tensor:
        if settings.bias is None:
            return logits
        logits = _widened(logits)
        return logits + settings.bias.to(logits.dtype)

    def _unstopped(
        self, logits: Tensor, depth: Tensor | int, part: slice, settings: Settings
    ) -> Tensor:
        """Ban what would end a row before its ``min_new_tokens``, node by node."""
        early = (row.num_generated < row.params.min_new_tokens for row in self._rows[part])
        if settings.banned is None or not any(early):
            return logits
        is_early = self._lengths[part, None] + depth < settings.min_lengths
        return logits.masked_fill(settings.banned & is_early[:, :, None], -torch.inf)

    def _nodes(self, logits: Tensor, depth: Tensor, part: slice, settings: Settings) -> Nodes:
        keys, lengths = self._keys[part], self._lengths[part]
        if settings is self._settings:
            levels = self._levels
        else:
            levels = LevelNoise(keys, lengths, self._vocab_size)
        return Nodes(logits, depth, settings, keys, lengths, levels)

    def _settings_of(self, part: slice) -> Settings:
        return Settings.of(self._rows[part], self._vocab_size, self._device)

    def _refresh(self) -> None:
        """Rows came or went."""
        self._settings = self._settings_of(slice(None))
        self._rewind()

    def _rewind(self) -> None:
        """The next tree starts at other positions: other noise."""
        self._levels = LevelNoise(self._keys, self._lengths, self._vocab_size)

    def _known(self, tokens: list[int]) -> Tensor:
        """The ids that the target can choose; an embedding may know more of them."""
        known = [token for token in tokens if token < self._vocab_size]
        return torch.tensor(known, dtype=torch.int64, device=self._device)


def _widened(logits: Tensor) -> Tensor:
    """In the precision of all later stages: float64 stays, anything else becomes float32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
