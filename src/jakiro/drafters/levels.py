"""What all drafters that feed a language model have in common: a tree grown level by level, each
level one forward under a mask of its ancestors."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.grow import Frontier, grow
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree


class LevelDrafter(Drafter):
    """Drives ``model`` in a ``KVCache`` whose rows are those of the batch.

    ``confidence``: a row ends below a level whose tokens were drawn from a law (at its likeliest
    path) with no token likelier than that. The last level stays in the draft: whether a token is
    kept does not depend on which it is. 0: no row ends early.
    """

    can_sample = True
    confidence = 0.0
    reads: FeatureSpec = NO_FEATURES
    """Of ``model``, what ``_goes_on`` is told."""

    def __init__(self, model: Target, vocab_size: int) -> None:
        self.model = model
        self.num_forwards = 0
        self._vocab_size = vocab_size

    def _grow(
        self, request: DraftRequest, cache: KVCache, logits: Tensor, caps: Sequence[int]
    ) -> tuple[TokenTree, TokenTree]:
        """The draft, and the tree of root and expanded nodes as it was fed to the model.

        ``logits`` [B, 1, V] follow the roots, which lie behind the committed part of ``cache``;
        ``caps``: the deepest node of each row.
        """
        fed, start = TokenTree.root_only(request.roots), 0
        going = self._goes_on(None, TargetOutput(logits))
        first = self._scores(logits, request, 1)

        def expand(frontier: Frontier) -> Tensor | None:
            nonlocal fed, start, going
            if not going.any():
                return None
            above, start = start, fed.num_nodes
            tokens = torch.cat([fed.tokens, frontier.tokens], 1)
            parents = torch.cat([fed.parents, above + frontier.parent_rows], 1)
            fed = TokenTree(tokens, parents, torch.ones_like(tokens, dtype=torch.bool))
            out = self._feed(fed, cache, start)
            scores = self._scores(out.logits, request, frontier.depth + 1)
            if not going.all():
                scores = scores.masked_fill(~going[:, None, None], -torch.inf)
            going = going & self._goes_on(frontier, out)
            return scores

        plan = request.plan
        if self.model.route == "chain":
            plan = TreePlan.chain(min(plan.depth, plan.budget))
        return grow(plan, request.roots, first[:, 0], expand, list(caps), request.choose), fed

    def _goes_on(self, frontier: Frontier | None, out: TargetOutput) -> Tensor:
        """[B] bool: the rows that are drafted deeper than the children of ``frontier``, from what
        the model says at its nodes [B, K]. None: at the roots, from their logits alone, once per
        draft. It may depend on the nodes fed so far, never on the children."""
        if not self.confidence:
            return out.logits.new_ones(len(out.logits), dtype=torch.bool)
        best = out.logits[:, 0].float()
        return (best.amax(-1) - best.logsumexp(-1)).exp() >= self.confidence

    def _feed(self, tree: TokenTree, cache: KVCache, num_known: int) -> TargetOutput:
        """One forward of the model, timed and counted: what it says at the nodes not known yet."""
        began = time.perf_counter()
        known = TokenTree(readable(self.model, tree.tokens), tree.parents, tree.valid)
        out = self.model.verify(known, cache, self.reads, num_known)
        self.module_ms += 1e3 * (time.perf_counter() - began)
        self.num_forwards += 1
        return out

    def _scores(self, logits: Tensor, request: DraftRequest, depth: int) -> Tensor:
        """Log scores [B, K, V] over the target's vocabulary, which may be the longer one."""
        return request.noise.scores(fitted(logits, self._vocab_size), depth)


def check_confidence(confidence: float) -> None:
    """Raise ``ConfigError`` unless it can be compared with a probability."""
    if not confidence >= 0:
        raise ConfigError(f"confidence must be at least 0 (never stop), got {confidence}")


def readable(model: Target, tokens: Tensor) -> Tensor:
    """``tokens`` with those that ``model`` has no embedding for replaced."""
    return tokens.where(tokens < model.vocab_size, 0)


def fitted(logits: Tensor, vocab_size: int) -> Tensor:
    """``logits`` [.., D] over ``vocab_size`` tokens: cut off, or minus infinity for the others."""
    missing = vocab_size - logits.shape[-1]
    # A negative number of rows is cut off.
    return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
