"""What all drafters that drive a language model of their own have in common: its cache, apart from
the target's, and what of the text is in it.

The model is driven like a target: prompts are prefilled, a tree is fed level by level under masks,
and of what was fed the accepted path stays in its own cache. What it has not seen of the committed
text, the root and before it the last accepted token if that was never expanded, is fed first in the
next draft.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jakiro.cache.kv_cache import KVRow
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.levels import LevelDrafter, readable
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class ModelDrafter(LevelDrafter):
    """Drives ``model`` as the drafter of ``target``.

    The two may differ in padding rows behind their common vocabulary: what only the target has is
    never drafted, and the model reads token 0 in its place. A model that can only check chains
    drafts chains. Rows that outgrow the context of the model get empty drafts.
    """

    def __init__(self, model: Target, target: Target) -> None:
        super().__init__(model, target.vocab_size)
        self.num_parameters = model.num_parameters
        self._cache = model.new_cache()
        # Per row the committed tokens before the root that are not in the cache.
        self._pending: list[list[int]] = []
        # Per row whether the cache begins with its prompt, which may be too long for the model.
        self._has_prompt: list[bool] = []
        # What lies behind the committed part of the cache: the root and all expanded nodes.
        self._fed: TokenTree | None = None

    def compile(self, backend: str) -> None:
        self.model.compile(backend)
        self.model.meet(self.reads)

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.resume(KVRow(0), ids, features)

    def save(self, row: int, length: int) -> KVRow:
        return self._cache.save(row, length if self._has_prompt[row] else 0)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        row = self._cache.admit(known)
        self._pending.append([])
        self._has_prompt.append(len(ids) < self.model.context_length)
        if self._has_prompt[row]:
            new = readable(self.model, torch.tensor(ids[known.length :]))
            self.model.prefill(new.tolist(), self._cache, row)
            self.num_forwards += 1

    def draft(self, request: DraftRequest) -> TokenTree:
        # After a cycle that was cut short, its tree is still there.
        self._fed = None
        edge = self.model.context_length
        sizes = zip(request.depth_caps, request.lengths, strict=True)
        caps = [min(cap, edge - length) for cap, length in sizes]
        if max(caps) < 1:
            return TokenTree.root_only(request.roots)
        logits = self._catch_up(request.roots)
        tree, self._fed = self._grow(request, self._cache, logits, caps)
        return tree

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        paths = verdict.paths
        texts = [
            [tokens[node] for node in path]
            for tokens, path in zip(tree.tokens.tolist(), paths, strict=True)
        ]
        kept: list[list[int]] = [[] for _ in texts]
        if self._fed is not None:
            known = zip(self._fed.tokens.tolist(), self._fed.parents.tolist(), strict=True)
            kept = [_spelling(text, *nodes) for text, nodes in zip(texts, known, strict=True)]
            self._cache.commit_paths(kept)
        for pending, text, path in zip(self._pending, texts, kept, strict=True):
            pending += text[len(path) :]

    def keep(self, rows: list[int]) -> None:
        self._cache.keep(rows)
        self._pending = [self._pending[row] for row in rows]
        self._has_prompt = [self._has_prompt[row] for row in rows]

    def _catch_up(self, roots: Tensor) -> Tensor:
        """Feed what is pending and the roots; returns the logits [B, 1, V] after the roots, which
        stay uncommitted, as node 0 of the trees to come."""
        texts = [
            [*pending, root] for pending, root in zip(self._pending, roots.tolist(), strict=True)
        ]
        size = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (size - len(text)) for text in texts])
        ends = torch.tensor([len(text) - 1 for text in texts])[:, None]
        steps = torch.arange(size)
        parents = (steps - 1).expand_as(tokens)
        parts = (part.to(roots.device) for part in (tokens, parents, steps <= ends))
        logits = self._feed(TokenTree(*parts), self._cache, 0).logits
        for row, pending in enumerate(self._pending):
            self._cache.advance(row, len(pending))
            self._pending[row] = []
        where = ends[:, :, None].to(logits.device).expand(-1, -1, logits.shape[-1])
        return logits.gather(1, where)


def _spelling(text: list[int], tokens: list[int], parents: list[int]) -> list[int]:
    """The nodes that spell the longest known beginning of ``text``, whose first is the root."""
    path = [0]
    for wanted in text[1:]:
        nodes = enumerate(zip(tokens, parents, strict=True))
        found = (node for node, (token, parent) in nodes if (token, parent) == (wanted, path[-1]))
        node = next(found, None)
        if node is None:
            break
        path.append(node)
    return path
