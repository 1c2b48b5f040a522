"""DuoAttention (arXiv 2410.10819) as a drafter: some heads retrieve from the whole text, the others
stream over its first and last tokens.

The paper learns how much each head retrieves, on made-up passkey texts, and decodes so, which
changes the text. Here the target verifies; the scores come from a published file, or are measured
on the text at hand.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from jakiro.cache.deferred import mix
from jakiro.cache.excerpt import Edges, edges_of
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.self_drafter import Reader
from jakiro.errors import ConfigError
from jakiro.target.selective import Asked, SelectiveView, check_heads
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree

MOST_SINKS, MOST_RECENT, NUM_QUERIES = 64, 256, 16


class DuoAttention(Reader):
    """Drafts with the heads of keys and values that retrieve, a ``share`` of all, on the whole
    text, and with the others on its first ``sinks`` and last ``recent`` tokens (None: 64 and 256,
    at most a 64th and a 16th of the context of the target).

    ``scores``: how much each head retrieves, [layers, kv_heads], or a file of such a table (columns
    separated by white space, as published). None: measured once, on the first text that is longer
    than sinks and recent tokens. Until then, and for shorter texts, a draft sees everything.

    Raises ``TargetRefused`` where heads cannot be told apart, ``ConfigError``.
    """

    name = "duo_attention"

    def __init__(
        self,
        target: Target,
        share: float = 0.5,
        sinks: int | None = None,
        recent: int | None = None,
        scores: Path | Tensor | None = None,
    ) -> None:
        context = target.context_length
        self._sinks = min(MOST_SINKS, context // 64) if sinks is None else sinks
        self._recent = max(1, min(MOST_RECENT, context // 16)) if recent is None else recent
        if self._sinks < 0 or self._recent < 1 or not 0 <= share <= 1:
            raise ConfigError(
                "sinks must be at least 0, recent at least 1 and share from 0 to 1, got "
                f"{self._sinks}, {self._recent} and {share}"
            )
        self._share = share
        self._view = SelectiveView(target, self._attend)
        super().__init__(self._view)
        self._runs: list[list[tuple[bool, slice]]] = []
        self._edges: Edges | None = None
        if scores is not None:
            table = _read(scores) if isinstance(scores, Path) else scores
            check_heads(target, table.shape, "scores")
            self._split(list(table))

    def draft(self, request: DraftRequest) -> TokenTree:
        if not self._runs and request.cache is not None:
            row = max(range(len(self.texts)), key=lambda row: len(self.texts[row]))
            if len(self.texts[row]) > self._sinks + self._recent:
                asked = self._view.observe(self.texts[row][-NUM_QUERIES:], request.cache, row)
                self.num_forwards += 1
                self._split([retrieval(one, self._sinks, self._recent) for one in asked])
        return super().draft(request)

    def _split(self, scores: list[Tensor]) -> None:
        """Of all heads of all layers the best ``share`` retrieve. Heads of a kind that lie beside
        each other are one call of the kernel."""
        everyone = torch.cat([layer.flatten().float() for layer in scores])
        count = round(self._share * len(everyone))
        chosen = torch.zeros_like(everyone, dtype=torch.bool)
        chosen[everyone.topk(count).indices] = True
        kinds = chosen.split([layer.numel() for layer in scores])
        self._runs = [_runs(layer.tolist()) for layer in kinds]

    def _attend(self, asked: Asked) -> Tensor | None:
        if asked.layer == 0:
            new = self._view.num_new
            starts = [end - new for end in self._view.ends]
            self._edges = edges_of(starts, new, self._sinks, self._recent)
        edges = self._edges
        if not self._runs or edges is None:
            return None
        runs, group = self._runs[asked.layer], asked.group
        near = None if asked.mask is None else edges.of_mask(asked.mask)
        mixed = []
        for is_whole, heads in runs:
            keys, values = asked.keys[:, heads], asked.values[:, heads]
            if not is_whole:
                keys, values = edges.of(keys), edges.of(values)
            queries = asked.queries[:, heads.start * group : heads.stop * group]
            mask = asked.mask if is_whole else near
            mixed.append(mix(queries, keys, values, mask, asked.scale))
        return torch.cat(mixed, 1)


def retrieval(asked: Asked, sinks: int, recent: int) -> Tensor:
    """[kv_heads]: how much of the attention of one row's T queries goes to neither the first
    ``sinks`` tokens nor the ``recent`` ones before each; mean over queries and grouped heads."""
    queries = asked.queries[0].unflatten(0, (-1, asked.group)).float()
    scores = queries @ asked.keys[0].float()[:, None].transpose(-1, -2) * asked.scale
    hidden = asked.hidden()
    if hidden is not None:
        scores = scores + hidden[0].float()
    # The queries are run again behind the text: place q of T sees the slots before its own copy.
    count, slots = scores.shape[-2:]
    first = slots - 2 * count + torch.arange(count, device=scores.device)[:, None] - recent
    slot = torch.arange(slots, device=scores.device)
    far = (slot >= sinks) & (slot < first)
    shares: Tensor = (scores.softmax(-1) * far).sum(-1).mean((1, 2))
    return shares


def _runs(kinds: list[bool]) -> list[tuple[bool, slice]]:
    """Neighbours of one kind, as the kind and their numbers."""
    runs, start = [], 0
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        runs.append((kind, slice(start, stop)))
        start = stop
    return runs


def _read(path: Path) -> Tensor:
    """A table of numbers. Raises ``ConfigError``."""
    try:
        rows = [[float(cell) for cell in line.split()] for line in path.read_text().splitlines()]
        return torch.tensor([row for row in rows if row])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no table of a score per layer (row) and head (column): {error}"
        ) from error
