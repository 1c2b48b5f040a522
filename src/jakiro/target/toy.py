"""A target without a network, for tests of everything that only needs one to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target


class ToyTarget(Target):
    """Looks the next token up by the last few: ``table`` [V, .., V, V] holds the logits that follow
    each run of tokens (the last dimension; one less is the number of tokens looked at, the oldest
    first; before the start of a text stands token 0).

    It is driven like any target and remembers only through the real ``KVCache``, where it keeps
    token ids as keys and positions as values. It finds a token by asking which of the *visible*
    slots lies k positions back, so a wrong mask, position, commit or row changes what it says.
    A feature is the logits themselves and ``lm_head`` returns it as it is. Fill parts of the table
    to plant behaviour, for example NaN after one token.
    """

    def __init__(self, table: Tensor, context_length: int = 64) -> None:
        self.table = table
        self.vocab_size = self.hidden_size = table.shape[-1]
        self.num_layers = 1
        self.context_length = context_length
        self.windows = {"full_attention": None}
        self.route, self.feature_refusal = "mask", None

    @classmethod
    def random(
        cls, vocab_size: int = 16, order: int = 2, seed: int = 0, context_length: int = 64
    ) -> ToyTarget:
        """A table of float64 noise: what follows depends on the last ``order`` tokens."""
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size,) * (order + 1)
        table = torch.randn(shape, generator=generator, dtype=torch.float64)
        return cls(3.0 * table, context_length)

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def num_parameters(self) -> int:
        return self.table.numel()

    def forward(
        self,
        tokens: Tensor,
        where: Tensor | None,
        mask: Tensor | dict[str, Tensor] | None,
        cache: Cache | None = None,
        needs: FeatureSpec = NO_FEATURES,
        keep: int = 0,
    ) -> TargetOutput:
        """See ``Target.forward``."""
        assert not isinstance(mask, dict), "a toy has one kind of layer"
        rows, width = tokens.shape
        count = torch.arange(width, device=self.device)
        where = (count if where is None else where).expand(rows, width)
        ids, places = (part.to(self.dtype)[:, None, :, None] for part in (tokens, where))
        if cache is not None:
            ids, places = cache.update(ids, places, 0)
        ids, places = ids[:, :, :, 0], places[:, :, :, 0]
        span = ids.shape[2]
        if mask is None:
            visible = torch.ones(width, span, dtype=torch.bool, device=self.device).tril(
                span - width
            )
        else:
            visible = mask[:, 0] == 0
        runs = [
            (ids * (visible & (places == (where - back)[:, :, None]))).sum(-1).long()
            for back in reversed(range(self.table.ndim - 1))
        ]
        # What a broken mask adds up to need not be a token.
        logits = self.table[tuple(run % self.vocab_size for run in runs)]
        features = torch.cat([logits] * len(needs.indices), -1) if needs.indices else None
        return TargetOutput(logits[:, -keep:], features)

    def embed(self, ids: Tensor) -> Tensor:
        """One-hot vectors [.., V]."""
        return F.one_hot(ids, self.vocab_size).to(self.dtype)

    def lm_head(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features

    def lm_head_of(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """The features of the tokens ``ids`` [D]: from [.., V] to [.., D]."""
        return lambda features: features[..., ids]

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and a hash of the table."""
        table = self.table.float().cpu().contiguous().numpy().tobytes()
        return {
            "model_type": "toy",
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "num_layers": self.num_layers,
            "embedding_sha256": hashlib.sha256(table).hexdigest(),
        }
