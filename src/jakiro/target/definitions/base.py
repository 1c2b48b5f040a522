"""Target definitions: the law of the next token made from more than one view of the text.

Plain decoding takes the logits of one forward as they are. A definition joins them with those of
other *sources*: another model, the same weights run differently, the same model after other words,
or earlier layers of the same forward. The joined logits stand at every node of a tree, and nothing
after them knows how they came about. So a drafter, a rule or a sampling setting promises of a
redefined target what it promises of any target: plain decoding *of that definition*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.cache.joint import JointCache
from jakiro.cache.kv_cache import KVCache
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree

Encode = Callable[[str], list[int]]
Promise = Literal["exact", "lossy"]
"""``exact``: drafts change no token of what the definition says. ``lossy``: neither do they, but
the definition itself only approximates a target that is meant to be served by it."""


class Definition(ABC):
    """What the target's law is. A method is a frozen dataclass of its settings.

    ``needs_amateur``: it takes a second model of the same vocabulary.
    """

    name: ClassVar[str]
    promise: ClassVar[Promise] = "exact"
    needs_amateur: ClassVar[bool] = False

    @abstractmethod
    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        """``target`` with this law. ``encode`` turns text into token ids, as it does of prompts.

        Raises:
            ConfigError: a setting does not fit the target.
            TargetRefused: the target has not the parts that this definition reads.
        """


@dataclass(frozen=True)
class Source:
    """A model that reads the text of every row, and which of its ``layers`` are read besides its
    last one (the streams entering those blocks). ``before``: tokens that stand before each text."""

    model: Target
    layers: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

    def readable(self, ids: list[int]) -> list[int]:
        """``ids`` with token 0 for those the model has no embedding of."""
        return [token if token < self.model.vocab_size else 0 for token in ids]

    def readable_tree(self, tree: TokenTree) -> TokenTree:
        """``tree`` with token 0 for those the model has no embedding of."""
        tokens = tree.tokens.where(tree.tokens < self.model.vocab_size, 0)
        return TokenTree(tokens, tree.parents, tree.valid)


@dataclass(frozen=True, eq=False)
class Said:
    """What a source says at nodes: ``logits`` [B, N, V] over the tokens that all sources have and,
    per layer read, what its head makes of that layer's states. At least float32."""

    logits: Tensor
    early: tuple[Tensor, ...] = ()


Join = Callable[[list[Said]], Tensor]
"""From what the sources say, the target itself first, to the logits [B, N, V] of the law: of the
shared tokens, too."""


class Redefined(Target):
    """``target`` whose logits are ``join`` of those of all sources: itself, of whose ``layers``
    the states are read, and ``others``, each with a cache of its own.

    Features, embeddings and head, and with them what drafters see, remain the target's. Tokens that
    not all sources have are padding and never said.
    """

    def __init__(
        self,
        target: Target,
        join: Join,
        layers: Sequence[int] = (),
        others: Sequence[Source] = (),
    ) -> None:
        vars(self).update(vars(target))
        self._join = join
        self._sources = [Source(target, tuple(layers)), *others]
        for source in self._sources:
            if source.layers:
                source.model.check_features()
        self._num_shared = min(source.model.vocab_size for source in self._sources)
        rooms = (each.model.context_length - len(each.before) for each in self._sources)
        self.context_length = min(rooms)
        if any(source.model.route == "chain" for source in others):
            self.route = "chain"

    @property
    def num_parameters(self) -> int:
        """Of all sources, shared ones once."""
        models = (source.model.model for source in self._sources)
        return sum({id(each): each.numel() for m in models for each in m.parameters()}.values())

    def compile(self, backend: str) -> None:
        for source in self._sources:
            source.model.compile(backend)

    @property
    def compile_ms(self) -> float:
        return sum(source.model.compile_ms for source in self._sources)

    def new_cache(self) -> KVCache:
        others = (source.model.num_layers for source in self._sources[1:])
        return JointCache(self.num_layers, list(others))

    @torch.no_grad()
    def prefill(
        self, ids: list[int], cache: KVCache, row: int, needs: FeatureSpec = NO_FEATURES
    ) -> TargetOutput:
        self.check_prompt(ids)
        outs = []
        for source, own in self._each(cache):
            is_first = not own.lengths[row]
            text = source.readable(ids)
            asked = _asked(source, needs if own is cache else NO_FEATURES)
            fed = [*source.before, *text] if is_first else text
            outs.append(source.model.prefill(fed, own, row, asked))
        return self._joined(outs, needs)

    @torch.no_grad()
    def verify(
        self,
        tree: TokenTree,
        cache: KVCache,
        needs: FeatureSpec = NO_FEATURES,
        num_known: int = 0,
    ) -> TargetOutput:
        outs = []
        for source, own in self._each(cache):
            asked = _asked(source, needs if own is cache else NO_FEATURES)
            outs.append(source.model.verify(source.readable_tree(tree), own, asked, num_known))
        return self._joined(outs, needs)

    def _each(self, cache: KVCache) -> list[tuple[Source, KVCache]]:
        assert isinstance(cache, JointCache), "a redefined target makes its own caches"
        return list(zip(self._sources, [cache, *cache.beside], strict=True))

    def _joined(self, outs: list[TargetOutput], needs: FeatureSpec) -> TargetOutput:
        """The law of the nodes, and the features that were asked for."""
        said: list[Said] = []
        features = None
        for source, out in zip(self._sources, outs, strict=True):
            width = len(source.layers) * source.model.hidden_size
            states = out.features
            read: tuple[Tensor, ...] = ()
            if width:
                assert states is not None
                num_nodes = out.logits.shape[1]
                read = states[:, -num_nodes:, :width].split(source.model.hidden_size, -1)
                states = states[..., width:]
            if not said and needs != NO_FEATURES:
                features = states
            early = tuple(self._shared(source.model.lm_head(state)) for state in read)
            said.append(Said(self._shared(out.logits), early))
        return TargetOutput(widened(self._join(said), self), features)

    def _shared(self, logits: Tensor) -> Tensor:
        """``logits`` [.., V'] of a source for the tokens that all sources have."""
        return widened(logits, self)[..., : self._num_shared]


def widened(logits: Tensor, target: Target) -> Tensor:
    """``logits`` [.., V'] over the vocabulary of ``target``, ``-inf`` where there are none, at
    least in float32, on its device."""
    logits = logits.to(target.device)
    # A negative number of tokens is cut off.
    logits = F.pad(logits, (0, target.vocab_size - logits.shape[-1]), value=-torch.inf)
    return logits if logits.dtype == torch.float64 else logits.float()


def _asked(source: Source, needs: FeatureSpec) -> FeatureSpec:
    """The states to ask of a source: those it is read for, then those of the drafter."""
    return FeatureSpec(needs.last, (*source.layers, *needs.layers))
