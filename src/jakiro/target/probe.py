"""Does a tree forward say what the model says? Asked once, when a target is loaded.

Two prompts of different length are prefilled, one of them in parts, a tree with siblings is
verified, a path that needs a gather is committed, and a second tree continues from it. Every node's
logits must agree with a plain uncached forward of its own text. That fails if a layer sees a
sibling, mistakes a slot for a position, keeps state outside the cache or ignores the mask it was
handed.

Windows. Where a window is at most ``_LONGEST`` the prompts are longer than it and the comparison
covers it. A larger one would cost thousands of tokens, and is shown in two parts: the short
comparison proves that every layer obeys the mask of its layer type; and the mask this package
builds for a context longer than the window must equal the one ``transformers`` builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from jakiro.cache.mask import tree_mask
from jakiro.errors import TargetRefused
from jakiro.target.families import chains_only
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

if TYPE_CHECKING:
    from jakiro.target.target import Target

Route = Literal["mask", "registered", "chain"]
"""How a tree reaches the model: as a ready 4-D mask, as a registered mask function, or not at all
(then drafts must be chains)."""

_LONGEST = 128
_SHORT = 12
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Root mean square of the error over the vocabulary, in units of the spread of the logits."""

_Shape = tuple[tuple[int, ...], tuple[int, ...]]
_FEATURES = FeatureSpec(last=True, layers=(1,))
_BRANCHING: _Shape = ((-1, 0, 0, 1, 1, 2), (0, 2, 5))
_CHAIN: _Shape = ((-1, 0, 1, 2), (0, 1, 2))
"""Parents of the first tree, and the path of it that is committed."""


def probe(target: Target) -> tuple[Route, str | None]:
    """The route by which trees reach the model of ``target`` (left set), and why its features are
    unusable (None: they are usable). Raises ``TargetRefused`` when no route is exact.

    Costs about six short forwards per route tried; leaves nothing behind.
    """
    routes: list[Route] = ["mask", "registered", "chain"]
    if chains_only(target.config):
        routes = ["chain"]
    elif not _windows_agree(target):
        routes = ["registered", "chain"]
    failures = []
    for route in routes:
        target.route = route
        try:
            error, problem = _attempt(target)
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # whatever a foreign model throws at an unusual call
            failures.append(f"{route}: {type(failure).__name__}: {failure}")
        else:
            if error <= _tolerance(target):
                return route, problem
            failures.append(f"{route}: the logits are off by {error:.2g} of their spread")
    who = f"{type(target.model).__name__} ({target.config.model_type})"
    if not _says_numbers(target):
        raise TargetRefused(
            f"{who} gives logits that are NaN or infinite in {str(target.dtype)[6:]}. Its weights "
            "are damaged, or its states too large for this type: copy or save the model again, or "
            "load it with dtype='float32' or 'bfloat16'"
        )
    raise TargetRefused(
        f"{who} does not give the same logits for drafted tokens as for text in order "
        f"({'; '.join(failures)}). Its attention or its state is of a kind this package cannot "
        "drive losslessly; use another model"
    )


@torch.no_grad()
def _says_numbers(target: Target) -> bool:
    """Whether the logits of a plain text are finite, or cannot be had."""
    tokens = torch.arange(_SHORT, device=target.device)[None] % target.vocab_size
    where = torch.arange(_SHORT, device=target.device)[None]
    try:
        logits = target.forward(tokens, where, None).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what it fails with has been told per route
        return True
    return bool(logits.isfinite().all())


@torch.no_grad()
def _attempt(target: Target) -> tuple[float, str | None]:
    """Error of the logits on the current route, and what is wrong with the features, if any."""
    try:
        logits, features, head = _Trial(target, _FEATURES).errors()
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        # Tokens may still be checked where hidden states cannot be read.
        return _Trial(target, NO_FEATURES).errors()[0], f"reading them fails ({failure})"
    if features > _tolerance(target):
        return logits, f"in a tree they are off by {features:.2g} of their spread"
    if head > _tolerance(target):
        return logits, f"its head does not turn them into its logits (off by {head:.2g})"
    return logits, None


def _tolerance(target: Target) -> float:
    return _TOLERANCE.get(target.dtype, 0.2)


def _windows_agree(target: Target) -> bool:
    """Whether each large window, as read from the config, masks as ``transformers`` would."""
    large = {name: w for name, w in target.windows.items() if w and w.size > _LONGEST}
    if not large or target.config._attn_implementation not in ("sdpa", "eager"):
        return True
    for name, window in large.items():
        tokens = torch.zeros(1, 3, dtype=torch.int64)
        chain = TokenTree(tokens, torch.arange(-1, 2)[None], torch.ones_like(tokens).bool())
        cache = target.new_cache()
        cache.lengths = [window.size + 5]
        span = cache.aim(slice(0, 1), 3)
        theirs = create_masks_for_generate(
            config=target.config,
            inputs_embeds=torch.zeros(1, 3, 1),
            attention_mask=None,
            past_key_values=cache,
            position_ids=torch.arange(span - 3, span)[None],
        )
        mask = theirs[name] if isinstance(theirs, dict) else theirs
        allowed = mask if mask.dtype == torch.bool else mask == 0
        if not torch.equal(allowed[:, 0], tree_mask(chain, [span - 3], span, window)):
            return False
    return True


class _Trial:
    """One comparison of cached trees with plain text, for two ragged rows."""

    def __init__(self, target: Target, needs: FeatureSpec) -> None:
        self.target, self.needs = target, needs
        self.parents, self.path = _CHAIN if target.route == "chain" else _BRANCHING
        sizes = [w.size for w in target.windows.values() if w and w.size <= _LONGEST]
        room = target.context_length - len(self.path) - 3
        length = max(1, min(max([_SHORT, *(size + 3 for size in sizes)]), room))
        generator = torch.Generator().manual_seed(0)
        self.prompts = [
            torch.randint(target.vocab_size, (n,), generator=generator).tolist()
            for n in (length, max(1, length - 3))
        ]

    def errors(self) -> tuple[float, float, float]:
        """The largest errors, relative to their spread, of any node's logits, of its features,
        and of the logits made from its features; the latter two are 0 where none were asked."""
        target, rows = self.target, len(self.prompts)
        cache = target.new_cache()
        for prompt, cut in zip(self.prompts, (0, 2), strict=True):
            row = cache.admit()
            for part in filter(None, (prompt[:cut], prompt[cut:])):
                target.prefill(part, cache, row, self.needs)
        first = self._tree(self.parents, 1)
        early = target.verify(first, cache, self.needs)
        cache.commit(Verdict([list(self.path)] * rows, [0] * rows))
        # A second tree that starts from what the commit left in the cache.
        second = self._tree(self.parents[:3], 1 + len(self.parents))
        late = target.verify(second, cache, self.needs)
        kept = [
            prompt + first.tokens[row, list(self.path)].tolist()
            for row, prompt in enumerate(self.prompts)
        ]
        found = [
            self._compare(self.prompts, first, early),
            self._compare(kept, second, late),
        ]
        logits, features, head = (max(column) for column in zip(*found, strict=True))
        return logits, features, head

    def _tree(self, parents: tuple[int, ...], first: int) -> TokenTree:
        """The same shape for both rows, all tokens distinct where the vocabulary allows."""
        rows, size = len(self.prompts), len(parents)
        tokens = (first + 3 * torch.arange(rows * size)).view(rows, size) % self.target.vocab_size
        shape = torch.tensor([parents] * rows)
        device = self.target.device
        valid = torch.ones_like(shape, dtype=torch.bool)
        return TokenTree(tokens.to(device), shape.to(device), valid.to(device))

    def _compare(
        self, texts: list[list[int]], tree: TokenTree, out: TargetOutput
    ) -> tuple[float, float, float]:
        """``errors`` of one tree: each node beside an uncached forward of its own text."""
        sequences = [
            text + tree.tokens[row, seen].tolist()
            for row, text in enumerate(texts)
            for seen in tree.ancestors[row]
        ]
        width = max(map(len, sequences))
        padded = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
        # Its own positions: some families count from another number (XLM-RoBERTa).
        plain = self.target.forward(padded.to(self.target.device), None, None, None, self.needs)
        index, ends = torch.arange(len(sequences)), torch.tensor([len(s) - 1 for s in sequences])
        logits = plain.logits[index, ends]
        error = _relative_error(out.logits.flatten(0, 1), logits)
        if plain.features is None or out.features is None:
            return error, 0.0, 0.0
        features = plain.features[index, ends]
        made = self.target.lm_head(features[:, -self.target.hidden_size :])
        return (
            error,
            _relative_error(out.features.flatten(0, 1), features),
            _relative_error(made, logits),
        )


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest root mean square difference of two rows [.., X], over the typical spread of one."""
    spread = theirs.float().std(-1).mean().clamp_min(1e-12)
    error = (ours.float() - theirs.float()).square().mean(-1).sqrt().max() / spread
    return float(error) if error.isfinite() else float("inf")
