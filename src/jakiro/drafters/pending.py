"""Pairs of feature and next token that a batch has committed and its draft head was not fed yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Pending:
    """Per row the features in pieces, and as many tokens once the root is among them."""

    def __init__(self) -> None:
        self._features: list[list[Tensor]] = []
        self._tokens: list[list[int]] = []

    def begin(self, features: Tensor, tokens: Sequence[int]) -> None:
        """One more row: the features [N, F] of the last N tokens of its prompt, and the N - 1
        ``tokens`` behind the first of them; after the last one comes the root."""
        self._features.append([features])
        self._tokens.append(list(tokens))

    def roots(self, tokens: Sequence[int]) -> None:
        """The last token of every row."""
        for row, token in zip(self._tokens, tokens, strict=True):
            row.append(token)

    def commit(self, row: int, features: Tensor, tokens: Sequence[int]) -> None:
        """Of a verified path the features [N, F], and the N - 1 tokens below the root."""
        self._features[row].append(features)
        self._tokens[row] += tokens

    def keep(self, rows: Sequence[int]) -> None:
        self._features = [self._features[row] for row in rows]
        self._tokens = [self._tokens[row] for row in rows]

    @property
    def counts(self) -> list[int]:
        """How many pairs of each row."""
        return list(map(len, self._tokens))

    def take(self, starts: Sequence[int], width: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Tokens [B, W] and features [B, W, F] of all pairs, padded behind the last of each row,
        and their positions [B, W], which follow ``starts``. They are pending no more; a feature
        whose next token is to come stays."""
        whole = [self._taken(row) for row in range(len(self._tokens))]
        features = whole[0][None] if len(whole) == 1 else pad_sequence(whole, batch_first=True)
        if room := width - features.shape[1]:
            features = F.pad(features, (0, 0, 0, room))
        padded = [tokens + [0] * (width - len(tokens)) for tokens in self._tokens]
        where = [list(range(start, start + width)) for start in starts]
        tokens, positions = torch.tensor([padded, where], device=features.device).unbind()
        self._tokens = [[] for _ in self._tokens]
        return (tokens, features), positions

    def joined(
        self, rows: Sequence[int], starts: Sequence[int]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """As ``take``, but of ``rows``, one behind another and without padding: tokens [1, N],
        features [1, N, F] and positions [1, N]."""
        features = torch.cat([self._taken(row) for row in rows])[None]
        chosen = [token for row in rows for token in self._tokens[row]]
        sizes = zip(starts, (len(self._tokens[row]) for row in rows), strict=True)
        where = [place for start, size in sizes for place in range(start, start + size)]
        tokens, positions = torch.tensor([[chosen], [where]], device=features.device).unbind()
        for row in rows:
            self._tokens[row] = []
        return (tokens, features), positions

    def _taken(self, row: int) -> Tensor:
        """The features of the pairs of ``row``, which are gone then."""
        pieces, count = self._features[row], len(self._tokens[row])
        features = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if len(features) == count:
            self._features[row] = []
            return features
        self._features[row] = [features[count:]]
        return features[:count]
