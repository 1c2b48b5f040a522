"""The tokens a drafter scores: all of the target's, or the most frequent ones.

FR-Spec (arXiv 2502.14856): with a large vocabulary the LM head is most of a draft's cost, and rare
tokens are rarely accepted. The rows of frequent tokens make a smaller head; the target still
chooses among all. A tree is grown in the numbering of the scored tokens, so noise, filters and
rankings are of those alone, and translated when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree


class DraftVocabulary:
    """The LM head of ``target`` restricted to ``ids`` [D] int64, ascending; None: all of it.

    Raises ``ConfigError`` for ids that are not ascending ids of the target.
    """

    def __init__(self, target: Target, ids: Tensor | None = None) -> None:
        self.ids = ids
        self.logits: Callable[[Tensor], Tensor] = target.lm_head
        """[.., D] from features [.., H]."""
        if ids is None:
            return
        last = target.vocab_size - 1
        if not (int(ids.min()) >= 0 and int(ids.max()) <= last and bool((ids.diff() > 0).all())):
            raise ConfigError(
                f"the draft vocabulary must be ascending ids of tokens of the target, from 0 to "
                f"{last}; got {ids.tolist()[:8]} ..."
            )
        self.logits = target.lm_head_of(ids)

    def tokens(self, local: Tensor) -> Tensor:
        """The tokens of the target at the places ``local`` [..] among the ids."""
        return local if self.ids is None else self.ids[local]

    def named(self, tree: TokenTree) -> TokenTree:
        """``tree`` with the tokens of the target below its root."""
        if self.ids is None:
            return tree
        below = self.tokens(tree.tokens[:, 1:])
        return replace(tree, tokens=torch.cat([tree.tokens[:, :1], below], 1))
