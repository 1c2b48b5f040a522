"""A language model that writes ahead of texts that others decide on, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from jakiro.drafters.base import DraftNoise
from jakiro.drafters.levels import fitted, readable
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree


class Begin(NamedTuple):
    """A row more, by a number of its own, and its prompt."""

    key: int
    ids: list[int]


class Keep(NamedTuple):
    """The rows that stay, in that order."""

    keys: list[int]


class Told(NamedTuple):
    """From ``start`` on the text of a row is ``tokens``, the last of them its root; what stands
    behind may be written until there are ``reach`` tokens."""

    start: int
    tokens: list[int]
    reach: int


class Follow(NamedTuple):
    """What became of all rows, in the order of ``noise``, which scores below their roots."""

    rows: list[Told]
    noise: DraftNoise


class Guess(NamedTuple):
    """What the model takes the text of a row to be from ``start`` on."""

    start: int
    tokens: list[int]


Message = Begin | Keep | Follow


@dataclass
class _Text:
    key: int
    tokens: list[int]
    committed: int = 0
    reach: int = 0


class Ahead:
    """Writes ahead of all rows, a token at a time; on the far side of a ``Link``.

    Its cache holds what it has read of each text, its own tokens too; where the text turned out
    another, it is cut back.
    """

    def __init__(self, model: Target, vocab_size: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._cache = model.new_cache()
        self._rows: list[_Text] = []
        # What ``Follow`` was told of; rows that have come since are not among them.
        self._told: list[_Text] = []
        self._noise: DraftNoise

    @property
    def is_busy(self) -> bool:
        """Whether a row may get another token."""
        return any(len(row.tokens) < row.reach for row in self._told)

    def tell(self, message: Message) -> None:
        """Take note of ``message``; a prompt is read now."""
        if isinstance(message, Begin):
            row = self._cache.admit()
            self._rows.append(_Text(message.key, list(message.ids)))
            if len(message.ids) < self._model.context_length:
                ids = readable(self._model, torch.tensor(message.ids))
                self._model.prefill(ids.tolist(), self._cache, row)
        elif isinstance(message, Keep):
            places = {row.key: place for place, row in enumerate(self._rows)}
            stay = [places[key] for key in message.keys]
            self._cache.keep(stay)
            self._rows, self._told = [self._rows[place] for place in stay], []
        else:
            self._noise = message.noise
            self._told = self._rows[: len(message.rows)]
            for row, told in enumerate(message.rows):
                self._follow(row, told)

    def step(self) -> dict[int, Guess]:
        """One token more for each row that may have it, by one forward of the model."""
        rows, known = self._told, self._cache.lengths
        goes_on = [len(row.tokens) < row.reach for row in rows]
        # Others are fed something that is not kept.
        news = [
            row.tokens[known[i] :] if more else [0]
            for i, (row, more) in enumerate(zip(rows, goes_on, strict=True))
        ]
        logits = self._feed(news)
        depths = [len(row.tokens) - row.committed + 1 for row in rows]
        for depth in {depth for depth, more in zip(depths, goes_on, strict=True) if more}:
            best = self._noise.scores(logits, depth)[:, 0].argmax(-1).tolist()
            for i, row in enumerate(rows):
                if goes_on[i] and depths[i] == depth:
                    self._cache.advance(i, len(news[i]))
                    row.tokens.append(best[i])
        return {row.key: Guess(row.committed, row.tokens[row.committed :]) for row in rows}

    def _follow(self, row: int, told: Told) -> None:
        text, start = self._rows[row], told.start
        pairs = zip(text.tokens[start:], told.tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if same < len(told.tokens):
            text.tokens[start + same :] = told.tokens[same:]
            self._cache.cut(row, start + same)
        text.committed = start + len(told.tokens)
        text.reach = min(told.reach, self._model.context_length)

    def _feed(self, news: list[list[int]]) -> Tensor:
        """Logits [B, 1, V] after the last of each row's tokens, which stay uncommitted."""
        size = max(map(len, news))
        tokens = torch.tensor([new + [0] * (size - len(new)) for new in news])
        ends = torch.tensor([len(new) - 1 for new in news])[:, None]
        steps = torch.arange(size)
        parts = (readable(self._model, tokens), (steps - 1).expand_as(tokens), steps <= ends)
        tree = TokenTree(*(part.to(self._model.device) for part in parts))
        logits = self._model.verify(tree, self._cache).logits
        where = ends[:, :, None].to(logits.device).expand(-1, -1, logits.shape[-1])
        return fitted(logits.gather(1, where), self._vocab_size)
