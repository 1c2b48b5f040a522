"""From the processed logits of nodes to choices, distributions and draft scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jakiro.sampling.noise import gumbel, position_keys
from jakiro.sampling.rows import Index, Settings, chosen, joined
from jakiro.sampling.shortlist import Kept, dense, kept
from jakiro.tree.largest import first_largest
from jakiro.tree.numbers import counting

_AHEAD = 7
"""Levels of noise that one row fetches beyond what is asked for."""


class Sharpness(NamedTuple):
    """How much surer of the target's choice draft logits q are than they say. The target chooses
    the largest of its logits plus the noise ``T G``; if those are ``a q`` and errors of Gumbel
    noise of scale s, token x is chosen with the probability
    ``softmax((a q + T G) / s)_x = softmax(logits q + noise T G)_x``."""

    logits: float = 1.0
    noise: float = 1.0


AS_SAID = Sharpness()
"""Of logits that are what they say."""


class LevelNoise:
    """Noise of the whole vocabulary by level: all nodes of one depth share it.

    Grows on demand, so what a drafter has looked at is not computed again for the target.
    """

    def __init__(self, keys: Tensor, lengths: Tensor, vocab_size: int) -> None:
        self._keys, self._lengths = keys, lengths
        self._vocab_size = vocab_size
        self._noise: dict[torch.dtype, Tensor] = {}

    def upto(self, rows: Index, num_levels: int, dtype: torch.dtype) -> Tensor:
        """[g, L, V] in ``dtype``, L >= ``num_levels``: of the tokens that the g ``rows``, the same
        in every call, choose at depths 0, 1, ..."""
        noise = self._noise.get(dtype)
        have = 0 if noise is None else noise.shape[1]
        if noise is None or have < num_levels:
            # A single row keeps what it has not used yet, so it may fetch ahead.
            ahead = _AHEAD if len(self._keys) == 1 else 0
            depths = torch.arange(have, num_levels + ahead, device=self._keys.device)
            keys = position_keys(self._keys[rows, None], self._lengths[rows, None] + depths)
            more = gumbel(keys, self._vocab_size).to(dtype)
            noise = self._noise[dtype] = more if noise is None else torch.cat([noise, more], 1)
        return noise

    def advance(self, num_tokens: int) -> None:
        """Every row has grown by ``num_tokens``: what was noise at that depth is now at 0."""
        self._noise = {dtype: noise[:, num_tokens:] for dtype, noise in self._noise.items()}


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of b rows, all stages before the temperature done."""

    logits: Tensor
    """[b, N, V]."""
    depth: Tensor | int
    """[b, N] int64, or that of all nodes, where it is the same and known."""
    settings: Settings
    keys: Tensor
    """[b] int64: the noise keys of the requests."""
    lengths: Tensor
    """[b] int64: absolute position of the token chosen at depth 0."""
    levels: LevelNoise
    """Noise for the free rows."""
    ids: Tensor | None = None
    """[V] int64: which tokens these are, of nodes of one level; None: the target's, in order."""

    def choice(self) -> Tensor:
        """[b, N] int64: the argmax of processed logits plus noise."""
        settings = self.settings
        groups: list[tuple[Index, Tensor]] = []
        if settings.greedy is not None:
            groups.append((settings.greedy, first_largest(chosen(self.logits, settings.greedy))))
        if settings.free is not None:
            groups.append((settings.free, first_largest(self._free_noisy(settings.free))))
        if settings.filtered is not None:
            rows, size = settings.filtered, self.logits.shape[1]
            flat = chosen(self.lengths, rows).repeat_interleave(size)
            for part, noisy in self._kept_noisy(rows):
                best = noisy.masked_fill(~part.keep, -torch.inf).argmax(-1, keepdim=True)
                flat[part.nodes] = part.ids.gather(1, best)[:, 0]
            groups.append((rows, flat.view(-1, size)))
        return joined(groups, len(self.logits))

    def probs(self) -> Tensor:
        """[b, N, V]: the processed distribution, one-hot for greedy rows."""
        settings, probs = self.settings, torch.zeros_like(self.logits)
        if settings.greedy is not None:
            best = self.logits[settings.greedy].argmax(-1, keepdim=True)
            probs[settings.greedy] = probs[settings.greedy].scatter(-1, best, 1.0)
        if settings.free is not None:
            probs[settings.free] = self._warped(settings.free).softmax(-1)
        if settings.filtered is not None:
            warped = self._warped(settings.filtered)
            parts = self._kept(warped)
            flat = dense(parts, [part.logits for part in parts], warped.shape[-1])
            probs[settings.filtered] = flat.view_as(warped).softmax(-1)
        return probs

    def law(self) -> Tensor:
        """[b, N, V]: ``probs``, but the softmax of the logits for greedy rows."""
        law, greedy = self.probs(), self.settings.greedy
        if greedy is not None:
            law[greedy] = self.logits[greedy].softmax(-1)
        return law

    def scores(self, sharpness: Sharpness) -> Tensor:
        """[b, N, V] float32: log softmax of ``sharpness.logits logits + sharpness.noise T G``
        within what the filters keep."""
        settings, temperature = self.settings, self.settings.temperature
        weight = sharpness.noise / sharpness.logits
        groups: list[tuple[Index, Tensor]] = []
        if settings.greedy is not None:
            groups.append((settings.greedy, chosen(self.logits, settings.greedy)))
        if settings.free is not None:
            rows, noise = settings.free, self._free_noise(settings.free)
            if settings.is_tempered:
                noise = chosen(temperature, rows).to(noise.dtype) * noise
            groups.append((rows, chosen(self.logits, rows).add(noise, alpha=weight)))
        if settings.filtered is not None:
            rows = settings.filtered
            parts, noisy = zip(*self._kept_noisy(rows, weight), strict=True)
            flat = dense(list(parts), list(noisy), self.logits.shape[-1])
            noisy_rows = flat.view_as(self.logits[rows])
            groups.append((rows, (temperature[rows] * noisy_rows).to(self.logits.dtype)))
        every = joined(groups, len(self.logits))
        return (sharpness.logits * every).log_softmax(-1, dtype=torch.float32)

    def _warped(self, rows: Index) -> Tensor:
        """[g, N, V]: the logits of ``rows`` over their temperature, in the same precision."""
        logits = chosen(self.logits, rows)
        if not self.settings.is_tempered:
            return logits
        return logits / chosen(self.settings.temperature, rows).to(logits.dtype)

    def _free_noisy(self, rows: Index) -> Tensor:
        """[g, N, V]: tempered logits of unfiltered rows plus noise, in the logits' precision."""
        return self._warped(rows) + self._free_noise(rows)

    def _free_noise(self, rows: Index) -> Tensor:
        """[g, N, V] of unfiltered rows, in the precision of the logits; N is 1 where all nodes
        lie at one level."""
        dtype = self.logits.dtype
        if isinstance(self.depth, int):
            noise = self.levels.upto(rows, self.depth + 1, dtype).narrow(1, self.depth, 1)
            return noise if self.ids is None else noise[..., self.ids]
        depth = chosen(self.depth, rows)
        noise = self.levels.upto(rows, int(depth.max()) + 1, dtype)
        first = counting(len(depth), depth.device)[:, None]
        return noise[first, depth]

    def _kept(self, warped: Tensor) -> list[Kept]:
        return kept(warped.flatten(0, 1), self.settings.filters(*warped.shape[1:]))

    def _kept_noisy(self, rows: Index, weight: float = 1.0) -> list[tuple[Kept, Tensor]]:
        """The candidates of filtered rows, and their tempered logits plus ``weight`` times the
        noise [Y, M]."""
        depth = self.depth if isinstance(self.depth, int) else self.depth[rows]
        keys = position_keys(self.keys[rows, None], self.lengths[rows, None] + depth)
        keys = keys.expand(-1, self.logits.shape[1]).flatten()
        found = []
        for part in self._kept(self._warped(rows)):
            tokens = part.ids if self.ids is None else self.ids[part.ids]
            noise = gumbel(keys[part.nodes], tokens)
            found.append((part, part.logits.add(noise, alpha=weight)))
        return found
