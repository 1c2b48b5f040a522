"""Double Sparsity (arXiv 2408.07092) as a drafter: a few channels of every key tell which tokens
matter to a query, and it attends to those alone.

The paper finds the channels on a corpus and decodes so, which changes the text. Here the target
verifies; the channels are given, or found on the text at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.cache.deferred import mix
from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.self_drafter import Reader
from jakiro.errors import ConfigError
from jakiro.target.selective import Asked, SelectiveView, check_heads
from jakiro.target.target import Target
from jakiro.tree.numbers import counting
from jakiro.tree.token_tree import TokenTree

NUM_QUERIES, LEAST_TOKENS = 16, 8


class DoubleSparsity(Reader):
    """Drafts with each query on the tokens, a ``share`` of the context of the target at most, that
    look best by the ``channels`` that count of their keys, and on the draft itself.

    ``channels``: how many of a key's; below 1 that share of them. ``labels``: which ones, a table
    [layers, kv_heads, channels]. None: found once, on the first text that is longer than what is
    attended to. Until then, and for shorter texts, a draft sees everything. A copy of those
    channels of all committed keys is kept.

    Raises ``TargetRefused`` where heads cannot be told apart, ``ConfigError``.
    """

    name = "double_sparsity"

    def __init__(
        self,
        target: Target,
        share: float = 1 / 16,
        channels: float = 1 / 8,
        labels: Tensor | None = None,
    ) -> None:
        if not 0 < share <= 1 or not channels > 0:
            raise ConfigError(
                "share must be over 0 and at most 1 and channels over 0, got "
                f"{share} and {channels}"
            )
        self._num_tokens = max(LEAST_TOKENS, round(share * target.context_length))
        self._channels = channels
        self._view = SelectiveView(target, self._attend)
        key_size = self._view.key_size()
        super().__init__(self._view)
        self._labels: Labels | None = None
        if labels is not None:
            check_heads(target, labels.shape[:2], "labels")
            self._labels = Labels(list(_checked(labels, key_size)))

    def draft(self, request: DraftRequest) -> TokenTree:
        cache = request.cache
        assert cache is not None, "a view drafts in the cache of its target"
        if self._labels is None:
            row = max(range(len(self.texts)), key=lambda row: len(self.texts[row]))
            if len(self.texts[row]) > self._num_tokens:
                asked = self._view.observe(self.texts[row][-NUM_QUERIES:], cache, row)
                self.num_forwards += 1
                self._labels = Labels([important(one, self._channels) for one in asked])
        if self._labels is not None and max(request.depth_caps) > 0:
            self._labels.extend(cache, len(self.texts))
        return super().draft(request)

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        if self._labels is not None:
            self._labels.keep(rows)

    def _attend(self, asked: Asked) -> Tensor | None:
        starts = [end - self._view.num_new for end in self._view.ends]
        if self._labels is None or max(starts) <= self._num_tokens:
            return None
        slots = self._chosen(asked, starts)
        keys, values = _rows(asked.keys, slots), _rows(asked.values, slots)
        hidden = asked.hidden()
        if hidden is not None:
            shape = (*slots.shape[:2], hidden.shape[2], -1)
            every = hidden.expand(*shape[:3], -1)
            hidden = every.gather(3, slots[:, :, None].expand(*shape))
            if min(starts) < self._num_tokens:
                # A row with fewer tokens has chosen slots behind its text: its draft, twice.
                end = torch.tensor(starts, device=slots.device)[:, None, None]
                past = slots[..., : self._num_tokens] >= end
                lowest = torch.finfo(hidden.dtype).min
                hidden[..., : self._num_tokens].masked_fill_(past[:, :, None], lowest)
            hidden = hidden.repeat_interleave(asked.group, 1)
        return mix(asked.queries, keys, values, hidden, asked.scale)

    def _chosen(self, asked: Asked, starts: list[int]) -> Tensor:
        """[B, kv_heads, K]: the slots whose labels promise the most attention to any query of a
        head, and those of the draft."""
        assert self._labels is not None
        labels, places = self._labels.of(asked.layer)
        length, group = labels.shape[2], asked.group
        queries = asked.queries.unflatten(1, (-1, group))
        index = places[None, :, None, None].expand(*queries.shape[:-1], -1)
        short = queries.gather(-1, index)
        scores = short.flatten(2, 3) @ labels.transpose(-1, -2) * asked.scale
        hidden = asked.hidden()
        if hidden is not None:
            scores = scores + hidden[..., :length].repeat(1, 1, group, 1)
        slot = torch.arange(length, device=scores.device)
        if min(starts) < length:
            past = slot >= torch.tensor(starts, device=scores.device)[:, None]
            scores = scores.masked_fill(past[:, None, None], torch.finfo(scores.dtype).min)
        best = scores.softmax(-1).amax(2).topk(self._num_tokens, sorted=False).indices
        first = torch.tensor(starts, device=best.device)[:, None]
        own = first + torch.arange(asked.keys.shape[2] - max(starts), device=best.device)
        return torch.cat([best, own[:, None].expand(-1, best.shape[1], -1)], -1)


class Labels:
    """The channels ``places`` (per layer [kv_heads, r]) of the committed keys of every row."""

    def __init__(self, places: list[Tensor]) -> None:
        self._places = places
        self._known: list[int] = []
        self._kept: list[Tensor] = []

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """The labels [B, kv_heads, S, r] of a layer, S tokens of the longest row; its places."""
        return self._kept[layer][:, :, : max(self._known)], self._places[layer]

    def extend(self, cache: KVCache, num_rows: int) -> None:
        """Copy what was committed to the first ``num_rows`` rows since the last call."""
        self._known += [0] * (num_rows - len(self._known))
        longest = max(cache.lengths[:num_rows])
        for row, start in enumerate(self._known):
            end = cache.lengths[row]
            if end == start:
                continue
            for layer, (keys, _) in enumerate(cache.content(row)):
                places = self._places[layer] = self._places[layer].to(keys.device)
                index = places[:, None].expand(-1, end - start, -1)
                room = self._room(layer, num_rows, longest, keys)
                room[row, :, start:end] = keys[:, start:].gather(-1, index)
            self._known[row] = end

    def keep(self, rows: list[int]) -> None:
        """Keep only ``rows``, renumbered in that order."""
        known = len(self._known)  # rows behind have no labels yet
        self._known = [self._known[row] if row < known else 0 for row in rows]
        # Of no rows nothing is kept, not even for one that comes without labels.
        kept = self._kept if rows else []
        self._kept = [each[[min(row, len(each) - 1) for row in rows]] for each in kept]

    def _room(self, layer: int, rows: int, length: int, keys: Tensor) -> Tensor:
        """The labels of a layer with space for ``rows`` of ``length`` tokens and some more."""
        if layer == len(self._kept):
            self._kept.append(keys.new_zeros(0, keys.shape[0], 0, self._places[layer].shape[1]))
        old = self._kept[layer]
        if old.shape[0] < rows or old.shape[2] < length:
            size = max(old.shape[2], length + length // 4)
            self._kept[layer] = old.new_zeros(rows, old.shape[1], size, old.shape[3])
            self._kept[layer][: old.shape[0], :, : old.shape[2]] = old
        return self._kept[layer]


def important(asked: Asked, channels: float) -> Tensor:
    """[kv_heads, r]: the channels of each head that add the most to scores, by the mean size of the
    products of one row's queries and keys."""
    dim = asked.keys.shape[-1]
    count = min(dim, max(1, round(channels * dim) if channels < 1 else round(channels)))
    queries = asked.queries[0].unflatten(0, (-1, asked.group))
    size = queries.abs().mean((1, 2)) * asked.keys[0].abs().mean(1)
    best: Tensor = size.topk(count).indices
    return best


def _checked(labels: Tensor, key_size: int) -> Tensor:
    """``labels`` as int64. Raises ``ConfigError`` unless they are channels of keys."""
    is_whole = not (labels.is_floating_point() or labels.is_complex())
    is_table = labels.ndim == 3 and labels.numel() > 0 and is_whole
    if not is_table or not 0 <= int(labels.min()) <= int(labels.max()) < key_size:
        raise ConfigError(
            f"labels must be channels of a key, integers from 0 to {key_size - 1}, in a table "
            f"[layers, kv_heads, channels]; got {labels.dtype} {list(labels.shape)}"
        )
    return labels.long()


def _rows(entries: Tensor, slots: Tensor) -> Tensor:
    """Of ``entries`` [B, heads, S, d] each head's own ``slots`` [B, heads, K]: [B, heads, K, d]."""
    if entries.stride(3) != 1 or any(each % entries.stride(2) for each in entries.stride()[:2]):
        entries = entries.contiguous()
    # Heads lie in one storage, whole entries apart: one call copies those of all. To gather takes
    # several times as long, and a call per head up to three times at a batch of 4.
    rows, heads, length, dim = entries.shape
    row, head = (each // entries.stride(2) for each in entries.stride()[:2])
    size = (rows - 1) * row + (heads - 1) * head + length
    starts = counting(rows, slots.device)[:, None] * row + counting(heads, slots.device) * head
    flat = entries.as_strided((size, dim), (entries.stride(2), 1))
    return flat.index_select(0, (slots + starts[:, :, None]).flatten()).view(*slots.shape, dim)
