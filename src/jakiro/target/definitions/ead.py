"""Entropy-adaptive decoding: a small model writes while it is easy, a large one where it is not
(Simonds, arXiv 2502.06833). Lossy: the text is that of neither model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jakiro.cache.kv_cache import NO_ROW, KVCache, KVRow
from jakiro.errors import ConfigError
from jakiro.target.definitions.base import Definition, Encode, Source, widened
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree


@dataclass(frozen=True)
class EntropyAdaptive(Definition):
    """``threshold``: bits; while the mean entropy of the last ``window`` laws is above it the
    target writes, else the amateur. ``stay``: tokens that one writes at least."""

    threshold: float = 1.0
    window: int = 5
    stay: int = 5

    name = "ead"
    promise = "lossy"
    needs_amateur = True

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise ConfigError("threshold must be a number of bits, got nan")
        for name in ("window", "stay"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        assert amateur is not None
        return Switching(target, amateur, self)

    def start(self) -> Turn:
        """Whose turn it is after a prompt: no entropy was seen, which counts as 0 bits."""
        return Turn(self.threshold < 0)

    def next(self, turn: Turn, entropy: float) -> Turn:
        """Whose turn it is after a law of that entropy."""
        seen = (*turn.entropies, entropy)[-self.window :]
        is_hard, stayed = sum(seen) / len(seen) > self.threshold, turn.stayed + 1
        if is_hard == turn.is_large or stayed < self.stay:
            return Turn(turn.is_large, seen, stayed)
        return Turn(is_hard, seen)


@dataclass(frozen=True)
class Turn:
    """Who writes the next token, after which entropies (bits, the last few), and for how many
    tokens it has been its turn."""

    is_large: bool
    entropies: tuple[float, ...] = ()
    stayed: int = 0


@dataclass
class _Reader:
    """A model's cache of one text, and the tokens of it that it has not read."""

    source: Source
    cache: KVCache = field(init=False)
    missed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = self.source.model.new_cache()
        self.cache.admit()

    def read(self, ids: list[int]) -> Tensor:
        """Feed committed tokens, after those missed; the logits [1, 1, V] after them."""
        ids, self.missed = self.source.readable([*self.missed, *ids]), []
        return self.source.model.prefill(ids, self.cache, 0).logits

    def look(self, tree: TokenTree) -> Tensor:
        """The logits [1, N, V] of a tree's nodes, in scratch."""
        if self.missed:
            self.read([])
        return self.source.model.verify(self.source.readable_tree(tree), self.cache).logits


@dataclass
class _Text:
    """One row: its readers, the small model's first, and whose turn it is. Of the tree last
    verified: its tokens, which readers looked at it, and whose turn it is after each node."""

    readers: tuple[_Reader, _Reader]
    turn: Turn
    tokens: list[int] = field(default_factory=list)
    looked: set[bool] = field(default_factory=set)
    after: list[Turn] = field(default_factory=list)

    def commit(self, path: list[int]) -> None:
        for is_large, reader in zip((False, True), self.readers, strict=True):
            if is_large in self.looked:
                reader.cache.commit_paths([path])
            else:
                reader.missed += [self.tokens[node] for node in path]
        self.turn = self.after[path[-1]]


class SwitchingCache(KVCache):
    """Rows that are read by two models, each as far as it had to."""

    def __init__(self, sources: Sequence[Source], opening: Turn) -> None:
        super().__init__(1)
        self.texts: list[_Text] = []
        self._sources, self._opening = sources, opening

    def admit(self, known: KVRow = NO_ROW) -> int:
        small, large = map(_Reader, self._sources)
        self.texts.append(_Text((small, large), self._opening))
        return super().admit()

    def save(self, row: int, length: int) -> KVRow:
        """Nothing: the two models have not read the same of it."""
        return NO_ROW

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.texts = [self.texts[row] for row in rows]

    def commit_paths(self, paths: list[list[int]]) -> None:
        super().commit_paths(paths)
        for text, path in zip(self.texts, paths, strict=False):
            text.commit(path)


class Switching(Target):
    """``large`` and ``small`` by turns. Whose turn it is after a node depends on the entropies on
    the path to it alone, so the law of a text does not depend on how it was drafted, and a draft is
    kept only as far as the model whose turn it was would have said it.

    Rows are fed one by one, because they are at different models. A model reads a tree only if it
    is its turn at some node, after what it has missed of the text. ``num_read``: tokens fed to the
    small and to the large model so far.
    """

    def __init__(self, large: Target, small: Target, settings: EntropyAdaptive) -> None:
        vars(self).update(vars(large))
        self._settings = settings
        self._sources = [Source(small), Source(large)]
        self.num_read = [0, 0]
        self.context_length = min(small.context_length, large.context_length)
        self._num_shared = min(small.vocab_size, large.vocab_size)
        if small.route == "chain":
            self.route = "chain"
        reason = "two models write by turns, and neither has read all of a text"
        self.feature_refusal = reason
        self.view_refusal = f"{reason}; use a drafter that is no view, for example prompt_lookup"

    def new_cache(self) -> KVCache:
        return SwitchingCache(self._sources, self._settings.start())

    def compile(self, backend: str) -> None:
        for source in self._sources:
            source.model.compile(backend)

    @property
    def compile_ms(self) -> float:
        return sum(source.model.compile_ms for source in self._sources)

    @torch.no_grad()
    def prefill(
        self, ids: list[int], cache: KVCache, row: int, needs: FeatureSpec = NO_FEATURES
    ) -> TargetOutput:
        self.check_prompt(ids)
        text, turn = self._texts(cache)[row], self._settings.start()
        for is_large, reader in zip((False, True), text.readers, strict=True):
            if is_large == turn.is_large:
                logits = reader.read(ids)
                self.num_read[is_large] += len(ids)
            else:
                reader.missed += ids
        # A part of a prompt that is not its last is overwritten by the next.
        text.turn = self._settings.next(turn, entropies(logits)[0])
        cache.advance(row, len(ids))
        return TargetOutput(self._shared(logits))

    @torch.no_grad()
    def verify(
        self,
        tree: TokenTree,
        cache: KVCache,
        needs: FeatureSpec = NO_FEATURES,
        num_known: int = 0,
    ) -> TargetOutput:
        rows = []
        for row, text in enumerate(self._texts(cache)[: tree.num_rows]):
            parts = (part[row : row + 1] for part in (tree.tokens, tree.parents, tree.valid))
            rows.append(self._verify_row(TokenTree(*parts), text))
        return TargetOutput(torch.cat(rows))

    def _verify_row(self, tree: TokenTree, text: _Text) -> Tensor:
        """The logits [1, N, V] of each node by the model whose turn it is there."""
        said: dict[bool, tuple[Tensor, list[float]]] = {}
        text.tokens, text.looked, text.after = tree.tokens[0].tolist(), set(), []
        nodes = zip(tree.parents[0].tolist(), tree.valid[0].tolist(), strict=True)
        writers = []
        for node, (parent, is_valid) in enumerate(nodes):
            turn = text.after[parent] if node else text.turn
            # What is never accepted is read by whoever reads the root.
            is_large = turn.is_large if is_valid else text.turn.is_large
            if is_large not in said:
                reader = text.readers[is_large]
                self.num_read[is_large] += len(reader.missed) + tree.num_nodes
                logits = reader.look(tree)
                said[is_large] = self._shared(logits), entropies(logits)
                text.looked.add(is_large)
            text.after.append(self._settings.next(turn, said[is_large][1][node]))
            writers.append(is_large)
        picked = [said[is_large][0][:, node] for node, is_large in enumerate(writers)]
        return torch.stack(picked, 1)

    def _shared(self, logits: Tensor) -> Tensor:
        """Of the tokens that both models have."""
        return widened(logits[..., : self._num_shared], self)

    def _texts(self, cache: KVCache) -> list[_Text]:
        assert isinstance(cache, SwitchingCache), "a redefined target makes its own caches"
        return cache.texts


def entropies(logits: Tensor) -> list[float]:
    """Of the laws of one row [1, N, V], before any processing, in bits."""
    law = logits[0].double().log_softmax(-1)
    bits: list[float] = (torch.special.entr(law.exp()).sum(-1) / math.log(2)).tolist()
    return bits
