"""The stages before temperature: what a request asks of its logits, node by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from jakiro.sampling.rows import Row
from jakiro.tree.token_tree import TokenTree


def path_counts(tree: TokenTree, vocab_size: int) -> Tensor:
    """[B, N, V] float32: how often each token occurs on the path from below the root to a node."""
    above = tree.ancestors[:, :, 1:].float()
    tokens = tree.tokens[:, None, 1:].clamp(0, vocab_size - 1).expand_as(above)
    return above.new_zeros(*tree.tokens.shape, vocab_size).scatter_add_(2, tokens, above)


def penalise(
    logits: Tensor,
    on_path: Tensor,
    seen: Tensor,
    counts: Tensor,
    penalties: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Repetition, then presence and frequency penalty of ``logits`` [B, N, V].

    ``on_path`` [B, N, V] counts the tokens of each node's path; ``seen`` [B, V] are the tokens of
    the prompt and the text, ``counts`` [B, V] those of the text generated so far. A row with the
    neutral penalties (1, 0, 0) passes unchanged.
    """
    repetition, presence, frequency = (penalty.to(logits.dtype) for penalty in penalties)
    touched = seen[:, None] | (on_path > 0)
    repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
    logits = torch.where(touched, repeated, logits)
    emitted = (counts[:, None] + on_path).to(logits.dtype)
    return logits - presence * (emitted > 0) - frequency * emitted


def apply_processors(logits: Tensor, tree: TokenTree, rows: Sequence[Row]) -> Tensor:
    """Call every row's own processors, once per depth, on the whole texts of its nodes. What they
    raise is noted in the row; the logits of those texts become NaN."""
    logits = logits.clone()
    for index, row in enumerate(rows):
        if not row.processors:
            continue
        row.errors.clear()
        paths = _paths(tree, index)
        levels: dict[int, list[int]] = defaultdict(list)
        for node, path in paths.items():
            levels[len(path)].append(node)
        for nodes in levels.values():
            _process(logits[index], nodes, paths, row)
    return logits


def _process(logits: Tensor, nodes: list[int], paths: dict[int, list[int]], row: Row) -> None:
    """Replace ``logits`` [N, V] at ``nodes``, which are of one depth, by what the processors of
    ``row`` make of them."""
    ids = torch.tensor([row.history + paths[node] for node in nodes], device=logits.device)
    scores = logits[nodes]
    try:
        for processor in row.processors:
            scores = processor(ids, scores)
        logits[nodes] = scores.to(logits.dtype)
    except Exception as error:
        # Some of the texts may never be reached: only those that raise alone are failed.
        if len(nodes) > 1:
            for node in nodes:
                _process(logits, [node], paths, row)
        else:
            logits[nodes] = torch.nan
            row.errors[tuple(paths[nodes[0]])] = (
                f"a processor raised {type(error).__name__}: {error}"
            )


def _paths(tree: TokenTree, row: int) -> dict[int, list[int]]:
    """For each valid node of one row the tokens from below the root to it."""
    tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
    paths: dict[int, list[int]] = {0: []}
    for node, valid in enumerate(tree.valid[row].tolist()):
        if node and valid:
            paths[node] = [*paths[parents[node]], tokens[node]]
    return paths
