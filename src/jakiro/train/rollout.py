"""The head run on its own predictions, for every position at once.

Pass 0 reads true features. Pass j reads at pair i what pass j - 1 predicted at pair i - 1, as the
drafter does at level j + 1 of a chain whose root pair is i - j. The keys it sees are then those
of that chain: true-feature keys up to pair i - j, and of every pass p >= 1 the one key at
pair i - j + p (training-time test of EAGLE-3, arXiv 2503.01840; alignment of HASS, 2408.15766).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jakiro.drafters.experts import HeadOutput
from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.target.target import Target
from jakiro.train.frozen import chunk_rows


class _PassCache:
    """The keys and values of earlier passes, and beside them those of this one."""

    def __init__(self, earlier: _PassCache | None) -> None:
        self._earlier = earlier
        self.rows: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        # May come twice with the same rows: a forward computed again must change nothing.
        if self._earlier is not None:
            keys = torch.cat([self._earlier.rows[0], keys], 2)
            values = torch.cat([self._earlier.rows[1], values], 2)
        self.rows = keys, values
        return self.rows


Carry = Callable[[HeadOutput], Tensor]
"""Which predicted feature [B, N, H] of every pair goes into the next pass."""


def rollout(
    head: DraftHead,
    embeddings: Tensor,
    features: Tensor,
    passes: int,
    contrasts: int,
    recompute: bool = False,
    carry: Carry = attrgetter("next"),
) -> list[HeadOutput]:
    """Outputs of ``passes`` passes over ``embeddings`` [B, N, H] and true ``features`` [B, N, F].

    Output j at pair i is meaningful for i >= j: earlier pairs have no chain that long behind them.
    ``recompute``: keep of every pass only what goes in, and compute it again in the backward.
    """
    batch, pairs, _ = embeddings.shape
    positions = torch.arange(pairs, device=embeddings.device).expand(batch, -1)
    run = partial(checkpoint, head, use_reentrant=False) if recompute else head
    cache: _PassCache | None = None
    outputs: list[HeadOutput] = []
    for number in range(passes):
        mask = pass_mask(pairs, number, embeddings.device) if number else None
        cache = _PassCache(cache)
        outputs.append(run(embeddings, features, positions, mask, cache, contrasts))
        if number + 1 < passes:
            # What comes around to the first pair is read by no chain that long.
            features = carry(outputs[-1]).to(features.dtype).roll(1, 1)
    return outputs


def carry_of(sizes: HeadConfig, target: Target, tokens: Tensor) -> Carry:
    """What a head of that kind is fed back when it drafts. ``tokens`` [B, N]: of the pairs."""
    if sizes.branches == "decoupled":
        return best_explaining(target, tokens)
    by_sum: Carry = attrgetter("next")
    return by_sum


def best_explaining(target: Target, tokens: Tensor) -> Carry:
    """Carry on with the expert that explains the text's own next token best, as the tree does with
    that of a child's token. ``tokens`` [B, N]: those of the pairs."""
    following = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1)

    def carry(output: HeadOutput) -> Tensor:
        assert output.experts is not None, "a head of one feature has nothing to choose"
        features, weights = output.experts
        with torch.no_grad():
            explained = weights.float().log().contiguous()
            flat = features.flatten(0, 1), following.flatten(), explained.flatten(0, 1)
            size = chunk_rows(features.device, features.shape[2] * target.vocab_size)
            for each, wanted, sums in zip(*(part.split(size) for part in flat), strict=True):
                log_probs = target.lm_head(each).float().log_softmax(-1)
                index = wanted[:, None, None].expand(-1, log_probs.shape[1], 1)
                sums += log_probs.gather(-1, index)[..., 0]
            choice = explained.argmax(-1)[..., None, None]
        return features.gather(2, choice.expand(-1, -1, 1, features.shape[-1]))[:, :, 0]

    return carry


def pass_mask(pairs: int, number: int, device: torch.device) -> Tensor:
    """Which keys of passes 0 to ``number`` a query of pass ``number`` sees: bool
    [1, 1, N, (number + 1) N], True = may attend."""
    query = torch.arange(pairs, device=device)[:, None]
    key = torch.arange(pairs, device=device)[None]
    root = query - number
    blocks = [key <= root, *(key == root + later for later in range(1, number + 1))]
    return torch.cat(blocks, 1)[None, None]
