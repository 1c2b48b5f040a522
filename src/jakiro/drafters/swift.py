"""SWIFT (arXiv 2410.06916): which attention and MLP layers the draft leaves out is searched while
the target generates, by how well each choice would have continued the text just written."""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.self_drafter import Reader
from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.target.view import Gates
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree

BAYES_INTERVAL, CANDIDATES, KAPPA, MOST_OBSERVED = 25, 256, 2.5, 300
GOOD_ENOUGH, PATIENCE, MOST_TRIALS = 0.95, 300, 1000


class Swift(Reader):
    """Drafts without ``skip_ratio`` of the attention and MLP layers between the first and the last
    layer, up to a token less likely than ``confidence``.

    One set is tried per cycle once a row has ``window`` new tokens, in one forward over them; the
    best one found so far drafts. The search goes on over requests and ends for good when a set is
    good enough. On targets that take no masks the evenly spaced set it starts from stays.
    """

    name = "swift"
    plan = TreePlan.chain(8)

    def __init__(
        self, target: Target, skip_ratio: float = 0.45, confidence: float = 0.8, window: int = 32
    ) -> None:
        if not 0 <= skip_ratio < 1 or window < 2:
            raise ConfigError(
                "skip_ratio must be from 0 to under 1 and window at least 2, got "
                f"{skip_ratio} and {window}"
            )
        self._gates = Gates(target)
        super().__init__(self._gates.view, confidence)
        self._places = [part for parts in self._gates.layers[1:-1] for part in parts]
        self.search = SetSearch(len(self._places), int(skip_ratio * len(self._places)))
        self.search.is_over |= target.route != "mask"
        self._window = window
        self._prompt_lengths: list[int] = []
        self._close(self.search.best)

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        super().begin(ids, features)
        self._prompt_lengths.append(len(ids))

    def draft(self, request: DraftRequest) -> TokenTree:
        if not self.search.is_over and request.cache is not None:
            self._try_one(request.roots.tolist(), request.cache)
        return super().draft(request)

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._prompt_lengths = [self._prompt_lengths[row] for row in rows]

    def _close(self, chosen: Tensor) -> None:
        self._gates.close({self._places[i] for i in chosen.nonzero()[:, 0].tolist()})

    def _try_one(self, roots: list[int], cache: KVCache) -> None:
        """Score the next set on the first row with enough new text, and take it if it is best."""
        texts = zip(self.texts, self._prompt_lengths, strict=True)
        ready = [row for row, (text, start) in enumerate(texts) if len(text) - start > self._window]
        if not ready:
            return
        row = ready[0]
        chosen = self.search.propose()
        self._close(chosen)
        fed = self.texts[row][-self._window :]
        said = self._gates.view.replay(fed, cache, row).argmax(-1).cpu()
        self.num_forwards += 1
        score = (said == torch.tensor([*fed[1:], roots[row]])).double().mean()
        self.search.tell(chosen, float(score))
        self._close(self.search.best)


class SetSearch:
    """Looks for the best set of ``size`` among ``num_places`` places: random ones, and at every
    ``BAYES_INTERVAL``-th trial the one of many with the largest upper confidence bound under a
    Gaussian process over all trials so far."""

    def __init__(self, num_places: int, size: int, seed: int = 0) -> None:
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        self.best = torch.zeros(num_places, dtype=torch.bool)
        self.best[(torch.arange(size) + 0.5).mul(num_places / max(1, size)).long()] = True
        self.best_score = -1.0
        self.is_over = not 0 < size < num_places
        self._sets: list[Tensor] = []
        self._scores: list[float] = []
        self._num_idle = 0

    def propose(self) -> Tensor:
        """The next set to try [num_places] bool; the first one is evenly spaced."""
        num_trials = len(self._scores)
        if not num_trials:
            return self.best.clone()
        if num_trials % BAYES_INTERVAL:
            return self._random(1)[0]
        candidates = self._random(CANDIDATES)
        return candidates[int(self._bound(candidates).argmax())]

    def tell(self, chosen: Tensor, score: float) -> None:
        """What the proposed set scored, 0 to 1."""
        self._sets.append(chosen)
        self._scores.append(score)
        self._num_idle += 1
        if score > self.best_score:
            self.best, self.best_score, self._num_idle = chosen, score, 0
        is_stuck = self._num_idle >= PATIENCE or len(self._scores) >= MOST_TRIALS
        self.is_over = score > GOOD_ENOUGH or is_stuck

    def _random(self, count: int) -> Tensor:
        """[count, num_places] sets, uniform."""
        noise = torch.rand(count, len(self.best), generator=self._generator)
        chosen = noise.topk(self._size, dim=1).indices
        return torch.zeros_like(noise, dtype=torch.bool).scatter(1, chosen, True)

    def _bound(self, candidates: Tensor) -> Tensor:
        """Mean plus ``KAPPA`` deviations of each candidate's score; the covariance of two sets
        falls with the number of places in which they differ."""
        seen = torch.stack(self._sets[-MOST_OBSERVED:]).double()
        scores = torch.tensor(self._scores[-MOST_OBSERVED:]).double()
        spread = scores.std().clamp_min(1e-3)

        def covariance(one: Tensor, other: Tensor) -> Tensor:
            return torch.exp(-torch.cdist(one, other, p=1) / max(1, self._size))

        inner = covariance(seen, seen) + 0.1 * torch.eye(len(seen), dtype=torch.float64)
        factor = torch.linalg.cholesky(inner)
        cross = covariance(seen, candidates.double())
        mean = cross.T @ torch.cholesky_solve(((scores - scores.mean()) / spread)[:, None], factor)
        known = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum(0)
        bound: Tensor = mean[:, 0] + KAPPA * (1 - known).clamp_min(0).sqrt()
        return bound
