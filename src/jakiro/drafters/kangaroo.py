"""Kangaroo (arXiv 2404.18911): the first layers of the target and a trained adapter draft, as long
as they are sure.

The adapter reads the residual stream ``h_i`` that enters layer ``exit_layer`` at every token, and
stands where the layers above would: what it makes of ``h_i`` goes into the target's head and
predicts the token after i. It has keys and values of its own. Those of the lower layers are the
target's: the view that feeds a draft reads and writes the target's cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.cache.mask import additive, positions, tree_mask
from jakiro.drafters.attention import Attention, KeyValues, RMSNorm
from jakiro.drafters.base import DraftRequest, Head
from jakiro.drafters.levels import LevelDrafter, check_confidence
from jakiro.errors import ConfigError
from jakiro.target.features import FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.packed import packed_view
from jakiro.target.target import Target
from jakiro.target.view import Gates, headless
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

MAX_PENDING = 32
"""While nothing is drafted, committed features are fed this many at a time."""


@dataclass(frozen=True)
class AdapterConfig:
    """``exit_layer``: how many layers of the target lie below the adapter. The rest is the size of
    its attention. Raises ``ConfigError``."""

    method: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    exit_layer: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "exit_layer"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ConfigError(
                "num_heads must be a multiple of num_kv_heads and head_dim even, got "
                f"{self.num_heads}, {self.num_kv_heads} and {self.head_dim}"
            )


class Adapter(Head):
    """Norm, attention, residual, norm: no MLP, and the head is the target's."""

    __call__: Callable[..., Tensor]
    config: AdapterConfig

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.norm = RMSNorm(config)

    def forward(
        self,
        states: Tensor,
        where: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """What goes into the head, [B, N, H], from the residual stream ``states`` [B, N, H] at
        positions ``where`` [B, N]; ``mask`` [B, 1, N, S], None: causal."""
        mixed = self.self_attn(self.input_layernorm(states), where, mask, cache)
        out: Tensor = self.norm(states + mixed)
        return out


class Kangaroo(LevelDrafter):
    """Drives an ``Adapter`` over a view of ``target``, up to a token less likely than
    ``confidence``, which is still drafted. Raises ``ConfigError``, ``TargetRefused``."""

    name = "kangaroo"
    plan = TreePlan.chain(6)

    def __init__(self, adapter: Adapter, target: Target, confidence: float = 0.6) -> None:
        exit_layer = adapter.config.exit_layer
        if not exit_layer < target.num_layers:
            raise ConfigError(
                f"the adapter stands behind layer {exit_layer} of a target of {target.num_layers} "
                "layers; train one for this target"
            )
        check_confidence(confidence)
        gates = Gates(target, headless(target))
        gates.close_layers(set(range(exit_layer, target.num_layers)))
        super().__init__(gates.view, target.vocab_size)
        self.confidence = confidence
        self.needs = self.reads = FeatureSpec(layers=(exit_layer,))
        self.num_parameters = sum(weight.numel() for weight in adapter.parameters())
        self._adapter = packed_view(adapter.eval())
        self._target = target
        self._cache = KVCache(1)
        # Per row the streams [M, H] of committed tokens that the adapter has not seen.
        self._pending: list[Tensor] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.resume(KVRow(0), ids, features)

    def save(self, row: int, length: int) -> KVRow:
        return self._cache.save(row, length)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        assert features is not None, "an adapter needs the residual stream of the prompt"
        row, start, end = self._cache.admit(known), known.length, len(ids)
        self._cache.aim(slice(row, row + 1), end - start)
        where = torch.arange(start, end, device=features.device)[None]
        slots = torch.arange(end, device=features.device)
        mask = (slots <= where[:, :, None])[:, None] if start else None
        self._adapter(features[None], where, mask, self._cache)
        self._cache.advance(row, end - start)
        self._pending.append(features[:0])

    def draft(self, request: DraftRequest) -> TokenTree:
        is_drafting = max(request.depth_caps) >= 1
        if is_drafting or max(map(len, self._pending)) >= MAX_PENDING:
            self._catch_up()
        if not is_drafting:
            return TokenTree.root_only(request.roots)
        cache = request.cache
        assert cache is not None, "an adapter reads what a view writes into the target's cache"
        out = self._feed(TokenTree.root_only(request.roots), cache, 0)
        tree = self._grow(request, cache, out.logits, request.depth_caps)[0]
        cache.wipe()
        return tree

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        assert out.features is not None
        for row, path in enumerate(verdict.paths):
            self._pending[row] = torch.cat([self._pending[row], out.features[row, path]])

    def keep(self, rows: list[int]) -> None:
        self._cache.keep(rows)
        self._pending = [self._pending[row] for row in rows]

    def _catch_up(self) -> None:
        """Feed what was committed since the last time."""
        counts = [len(streams) for streams in self._pending]
        if not max(counts):
            return
        streams = pad_sequence(self._pending, batch_first=True)
        parents = torch.arange(-1, max(counts) - 1, device=streams.device).expand(len(counts), -1)
        self._adapted(streams, TokenTree(parents + 1, parents, parents >= -1), 0)
        for row, count in enumerate(counts):
            self._cache.advance(row, count)
        self._pending = [row[:0] for row in self._pending]

    def _feed(self, tree: TokenTree, cache: KVCache, num_known: int) -> TargetOutput:
        streams = super()._feed(tree, cache, num_known).features
        assert streams is not None
        began = time.perf_counter()
        logits = self._target.lm_head(self._adapted(streams, tree, num_known))
        self.module_ms += 1e3 * (time.perf_counter() - began)
        return TargetOutput(logits)

    def _adapted(self, streams: Tensor, tree: TokenTree, num_known: int) -> Tensor:
        """The adapter on the nodes of ``tree`` not known yet, whose ``streams`` are [B, N, H]."""
        lengths = self._cache.lengths
        span = self._cache.aim(slice(0, len(lengths)), streams.shape[1], num_known)
        mask = additive(tree_mask(tree, lengths, span)[:, num_known:], streams.dtype)
        where = positions(tree, lengths)[:, num_known:]
        return self._adapter(streams, where, mask, self._cache)
