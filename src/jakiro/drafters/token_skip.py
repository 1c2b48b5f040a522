"""Every token takes the MLPs it needs: FTP (arXiv 2412.11494) as a self-drafter.

There trained routers let each token skip the blocks that change it little, and that is the model.
Here the target verifies, and the routers are fitted to what its blocks did at the end of a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.self_drafter import Reader
from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.target import Target
from jakiro.target.view import View, check_masks, layer_parts, name_of
from jakiro.tree.token_tree import TokenTree

RIDGE = 1e-3


class TokenSkip(Reader):
    """Drafts with each token leaving out the MLPs that are expected to change it least, about a
    share ``sparsity`` of those above the first layer.

    The routers are fitted once, by one forward over the last ``window`` tokens of the first text
    that has so many; until then nothing is left out. Attention stays: later tokens read its keys.

    Raises ``TargetRefused`` where layers have no MLP of their own, ``ConfigError``.
    """

    name = "token_skip"

    def __init__(self, target: Target, sparsity: float = 0.4, window: int = 32) -> None:
        if not 0 <= sparsity < 1 or window < 2:
            raise ConfigError(
                f"sparsity must be from 0 to under 1 and window at least 2, got {sparsity} and "
                f"{window}"
            )
        self._view = RoutedView(target)
        super().__init__(self._view)
        self._sparsity, self._window = sparsity, window

    def draft(self, request: DraftRequest) -> TokenTree:
        if not self._view.routers and request.cache is not None:
            row = max(range(len(self.texts)), key=lambda row: len(self.texts[row]))
            if len(self.texts[row]) >= self._window:
                seen = self._view.observe(self.texts[row][-self._window :], request.cache, row)
                self.num_forwards += 1
                self._view.routers = fitted(seen, self._sparsity)
        return super().draft(request)


class Seen(NamedTuple):
    """Of T tokens at one MLP: the log of the size of the residual stream, the relative change the
    MLP below made, what this one is given [T, H], and the relative change it made."""

    size: Tensor
    below: Tensor
    given: Tensor
    change: Tensor


class Router(NamedTuple):
    """Expects of a token a relative change that is linear in four factors; below ``threshold`` the
    token skips. ``mean`` [H]: of what the MLP is given; ``weights`` [4]."""

    mean: Tensor
    weights: Tensor
    threshold: float

    def expect(self, size: Tensor, below: Tensor, given: Tensor) -> Tensor:
        """[..]: the change, from factors [..] and what the MLP is given [.., H]."""
        return factors(size, below, given, self.mean) @ self.weights


class RoutedView(View):
    """``target`` whose MLPs above the first let tokens skip them, if there are ``routers``: one
    each, from bottom to top. Raises ``TargetRefused``."""

    def __init__(self, target: Target) -> None:
        check_masks(target)
        parts = layer_parts(target)
        if len(parts) < 2 or any(len(own) < 2 for own in parts):
            raise TargetRefused(
                f"{name_of(target)} has no two layers with an MLP each; use another drafter"
            )
        self.routers: list[Router] = []
        self._seen: list[Seen] | None = None
        self._stream = self._below = torch.empty(0)
        changes: dict[str, Callable[[nn.Module], None]] = {}
        changes |= {name.rpartition(".")[0]: self._enter for _, name in parts[1:]}
        for number, (_, mlp) in enumerate(parts[1:]):
            changes[mlp] = self._routed(number)
        super().__init__(target, changes)

    def observe(self, ids: list[int], cache: KVCache, row: int) -> list[Seen]:
        """What the MLPs do when the last committed tokens ``ids`` of ``row`` are run again."""
        seen: list[Seen] = []
        self._seen = seen
        try:
            self.replay(ids, cache, row)
        finally:
            self._seen = None
        return seen

    def _enter(self, layer: nn.Module) -> None:
        """Note the residual stream that enters a layer."""
        usual = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._stream = args[0] if args else kwargs["hidden_states"]
            return usual(*args, **kwargs)

        layer.__dict__["forward"] = forward

    def _routed(self, number: int) -> Callable[[nn.Module], None]:
        """A change that makes an MLP ask the router of its ``number``."""

        def change(mlp: nn.Module) -> None:
            usual = mlp.forward

            def forward(given: Tensor) -> Tensor:
                if given.shape != self._stream.shape:
                    raise ValueError("what enters a layer is no stream of the states of its MLP")
                size = self._stream.norm(dim=-1)
                below = self._below if number else torch.zeros_like(size)
                if not self.routers:
                    out: Tensor = usual(given)
                    self._below = out.norm(dim=-1) / size
                    if self._seen is not None:
                        self._seen.append(Seen(size[0].log(), below[0], given[0], self._below[0]))
                    return out
                router = self.routers[number]
                expected = router.expect(size.log(), below, given)
                skips = expected < router.threshold
                if skips.all():
                    self._below = expected
                    return torch.zeros_like(given)
                out = usual(given).masked_fill(skips[..., None], 0)
                self._below = expected.where(skips, out.norm(dim=-1) / size)
                return out

            mlp.__dict__["forward"] = forward

        return change


def factors(size: Tensor, below: Tensor, given: Tensor, mean: Tensor) -> Tensor:
    """[.., 4]: one, the two factors [..], and the likeness of what is given to its mean."""
    likeness = torch.cosine_similarity(given, mean, dim=-1)
    return torch.stack([torch.ones_like(size), size, below, likeness], -1)


def fitted(seen: list[Seen], sparsity: float) -> list[Router]:
    """Routers by least squares, with one threshold: below it is the share ``sparsity`` of all that
    they expect of what was seen."""
    found = []
    for one in seen:
        mean = one.given.mean(0)
        known = factors(one.size, one.below, one.given, mean).double()
        ridge = RIDGE * torch.eye(4, dtype=torch.float64, device=known.device)
        weights = torch.linalg.solve(known.T @ known + ridge, known.T @ one.change.double())
        found.append((mean, weights.to(mean.dtype), known @ weights))
    everything = torch.cat([expected for *_, expected in found])
    threshold = float(everything.quantile(sparsity)) if sparsity else -math.inf
    return [Router(mean, weights, threshold) for mean, weights, _ in found]
