"""The tokens a drafter scores: all of the target's, or the most frequent ones.

FR-Spec (arXiv 2502.14856): with a large vocabulary the LM head is most of a draft's cost, and rare
tokens are rarely accepted. The rows of frequent tokens make a smaller head; the target still
chooses among all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.target.target import Target


class DraftVocabulary:
    """The LM head of ``target`` restricted to ``ids`` [D] int64, ascending; None: all of it.

    Raises ``ConfigError`` for ids that are not ascending ids of the target.
    """

    def __init__(self, target: Target, ids: Tensor | None = None) -> None:
        self._target, self._ids = target, ids
        self.local_logits: Callable[[Tensor], Tensor] = target.lm_head
        if ids is None:
            return
        last = target.vocab_size - 1
        if not (int(ids.min()) >= 0 and int(ids.max()) <= last and bool((ids.diff() > 0).all())):
            raise ConfigError(
                f"the draft vocabulary must be ascending ids of tokens of the target, from 0 to "
                f"{last}; got {ids.tolist()[:8]} ..."
            )
        self.local_logits = target.lm_head_of(ids)

    def logits(self, features: Tensor) -> Tensor:
        """[.., V] from features [.., H]; -inf for tokens that are not scored."""
        return self.widened(self.local_logits(features))

    def widened(self, local: Tensor) -> Tensor:
        """[.., V] from scores [.., D]; -inf elsewhere."""
        if self._ids is None:
            return local
        wide = local.new_full((*local.shape[:-1], self._target.vocab_size), -torch.inf)
        return wide.index_copy_(-1, self._ids, local)

    def local(self, tokens: Tensor) -> Tensor:
        """Where ``tokens`` are among the ids; any place for those that are not scored, which stand
        where a level has fewer candidates than places."""
        if self._ids is None:
            return tokens
        return torch.searchsorted(self._ids, tokens).clamp_max(len(self._ids) - 1)
