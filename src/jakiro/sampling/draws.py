"""What is drawn besides the target's choices: sampled drafts, and the coins of their rules.

Such a rule keeps the target's law only if the draft is independent of the coins and of the noise
that the choices use. Each has a stream of its own (``Purpose``), keyed by the length of the text
at the cycle's start as well: no two cycles of a request share it, so nothing is drawn twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.sampling.nodes import Nodes
from jakiro.sampling.noise import Purpose, gumbel, position_keys, purpose_keys, uniform
from jakiro.tree.token_tree import TokenTree


class DraftDraws:
    """Scores under which the best children of a node are a sample without replacement.

    The Gumbel-top-k trick: the ``k`` largest of ``log law + noise``, in descending order, are ``k``
    successive draws from ``law`` without replacement. Here ``law`` is the processed draft law of
    each frontier node (bias, ``min_new_tokens``, temperature and filters as the target has them),
    and the noise is that of the node's level and column. Greedy rows get their candidates without
    noise. A drafter that scores a level once for all its nodes draws them alike, which is harmless:
    a rule tries the children of one node per level. This is the ``DraftNoise`` of a drafter; every
    draft ends with ``seal``.
    """

    def __init__(
        self, process: Callable[[Tensor, int, Tensor | None], Nodes], vocab_size: int
    ) -> None:
        self._process, self._vocab_size = process, vocab_size
        self._laws: dict[int, Tensor] = {}

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        """Scores [B, K, D] (float32) of children at ``depth`` >= 1, from draft logits [B, K, D] of
        the tokens ``ids``."""
        nodes = self._process(logits, depth, ids)
        law = nodes.law()
        self._laws[depth] = law if ids is None else self._widened(law, ids)
        scores, greedy = law.log(), nodes.settings.greedy
        if not isinstance(greedy, slice):
            keys = position_keys(purpose_keys(nodes.keys, Purpose.DRAFT), nodes.lengths)
            columns = torch.arange(law.shape[1], device=law.device)
            keys = position_keys(
                position_keys(keys, torch.full_like(keys, depth))[:, None], columns
            )
            noise = gumbel(keys, law.shape[-1] if ids is None else ids)
            if greedy is not None:
                noise[greedy] = 0
            scores += noise.to(scores.dtype)
        return scores.float()

    def _widened(self, law: Tensor, ids: Tensor) -> Tensor:
        """[B, K, V] from a law [B, K, D]: other tokens are never drawn."""
        wide = law.new_zeros(*law.shape[:-1], self._vocab_size)
        return wide.index_copy_(-1, ids, law)

    def seal(self, tree: TokenTree) -> TokenTree:
        """``tree`` with the laws its nodes were drawn from.

        Raises:
            ConfigError: nodes were chosen otherwise than by the scores given out here.
        """
        found, self._laws = self._laws, {}
        if tree.num_nodes == 1:
            return tree
        inner = tree.depth[0, tree.has_children[0]]
        laws = [
            found[depth].expand(-1, count, -1)
            for depth, count in enumerate(torch.bincount(inner).tolist(), start=1)
            if depth in found and found[depth].shape[1] in (1, count)
        ]
        is_shaped = torch.equal(tree.parents, tree.parents[:1].expand_as(tree.parents))
        if not is_shaped or sum(law.shape[1] for law in laws) != len(inner):
            raise ConfigError(
                "this draft is no sample: its nodes were not all chosen by the scores of the "
                "request's noise, or its shape depends on them; use the rule match, or another "
                "drafter or tree"
            )
        return replace(tree, laws=torch.cat(laws, 1))


@dataclass(frozen=True, eq=False)
class RuleDraws:
    """The randomness of a verdict. Nothing is computed before it is asked for."""

    keys: Tensor
    """[B] int64: the noise keys of the requests."""
    lengths: Tensor
    """[B] int64: absolute position of the token chosen at the root."""

    def coins(self, num_nodes: int) -> Tensor:
        """[B, N] float64: a uniform number of its own for every node."""
        keys = position_keys(purpose_keys(self.keys, Purpose.ACCEPT), self.lengths)
        return uniform(keys, num_nodes)

    def draw(self, probs: Tensor, depth: Tensor) -> Tensor:
        """[B]: a token from each row of ``probs`` [B, V] (any scale), by the noise of the choices
        at ``depth`` [B]. No other choice of the emitted text uses that noise."""
        noise = gumbel(position_keys(self.keys, self.lengths + depth), probs.shape[-1])
        return (probs.double().log() + noise).argmax(-1)
