"""The role of a drafter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from jakiro.cache.kv_cache import KVCache, KVRow
from jakiro.errors import ConfigError
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.tree.grow import Choose, best
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


class HeadSettings(Protocol):
    """A frozen dataclass of plain values: everything needed to build a head."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def method(self) -> str:
        """The registered name of the drafter that drives such a head."""


class Head(nn.Module):
    """A network trained for one target, as checkpoints keep it: ``type(head)(head.config)`` builds
    another of its sizes, and its state dict is the rest."""

    config: HeadSettings


class DraftNoise(Protocol):
    """From draft logits to scores, with or without the noise that the target will choose with."""

    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        """Log scores [B, K, D] of children at ``depth`` >= 1, from draft logits [B, K, D] of the
        tokens ``ids`` [D] (None: of all V): the log softmax that ``Sharpness`` says
        within what the row's top-k, top-p and min-p keep (``-inf`` outside), T being 0 for greedy
        rows. Where nodes are drawn: the log of the law within the same filters. Called once per
        level of a tree."""


@dataclass(frozen=True, eq=False)
class DraftRequest:
    """Everything one draft depends on, besides what the drafter was told before."""

    roots: Tensor
    """[B] int64: the last committed token of each row, whose KV is not in the cache."""
    lengths: list[int]
    """Per row the number of committed tokens before the root: the root's absolute position."""
    depth_caps: list[int]
    """Per row the deepest node that is still of use (tokens wanted, context edge); may be 0."""
    plan: TreePlan
    noise: DraftNoise
    is_sampled: bool = False
    """The rule wants the nodes drawn from a law (``can_sample``): ``choose`` draws them."""
    cache: KVCache | None = None
    """The target's own, for views of it: what a draft writes behind the committed entries is
    overwritten when the tree is verified. None: there is none to share."""
    choose: Choose = best
    """How ``grow`` takes children from their scores."""
    is_traced: bool = False
    """``origin`` will be asked about this draft."""


class Drafter(ABC):
    """Proposes trees. Rows are numbered as in the batch; ``keep`` renumbers them."""

    name: str
    needs: FeatureSpec = NO_FEATURES
    plan: TreePlan = TreePlan()
    """The tree it grows unless the user asks for another."""
    can_sample: bool = False
    """Whether all its nodes are chosen by ``grow`` with ``request.choose`` from
    ``request.noise.scores``: then rules that need a draft drawn from a law can be used."""
    inner: Drafter | None = None
    """The drafter it stands over, if it is an arbiter: that one has the same rows."""
    free_levels: int = 0
    """How many of the last levels of a draft, the first one not among them, take no forward of
    their own."""
    num_parameters: int = 0
    """Of its own networks."""
    module_ms: float = 0.0
    """Wall time spent inside the drafter's own network, for the engine's statistics."""

    _holder: object | None = None

    @property
    def holder(self) -> object | None:
        """The batch whose rows it has; those of one only."""
        return self._holder if self.inner is None else self.inner.holder

    @holder.setter
    def holder(self, batch: object | None) -> None:
        if self.inner is None:
            self._holder = batch
        else:
            self.inner.holder = batch

    def check_free(self, batch: object | None = None) -> None:
        """Raise ``ConfigError`` while it has rows of another batch than this one: they are numbered
        alike, and each engine would spoil the other's."""
        if self.holder not in (None, batch):
            raise ConfigError(
                f"another engine has answers in flight with this {self.name} drafter; finish "
                "them first, or load a second drafter"
            )

    def largest_token(self) -> int:
        """The largest id that it may draft without having seen it in a text of the target or in
        what the target says; -1: there is none."""
        return -1 if self.inner is None else self.inner.largest_token()

    def compile(self, backend: str) -> None:  # noqa: B027  most have no network to compile
        """Run its own network, if it has one, through this backend of ``torch.compile``."""

    @abstractmethod
    def begin(self, ids: list[int], features: Tensor | None) -> None:
        """Append one row: its prompt ``ids`` (length T) and their features [T, F]. The root, drawn
        from the last of them, is not among the ids; it comes with the first ``DraftRequest``."""

    def save(self, row: int, length: int) -> KVRow:
        """What another row that begins like ``row`` may take over, for the first ``length`` tokens
        or fewer. Entry i may depend on tokens 0 to i+1.

        Unless told otherwise: a drafter that reads no features has nothing to take over and needs
        nothing either; to one that does, nothing can be spared.
        """
        return KVRow(length if self.needs == NO_FEATURES else 0)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        """``begin``, of a row that takes over what ``save`` gave: ``features`` are those of
        ``ids[known.length:]``, at least one."""
        self.begin(ids, features)

    @abstractmethod
    def draft(self, request: DraftRequest) -> TokenTree:
        """One tree per row, no deeper than the row's cap and the plan, of at most ``plan.budget``
        nodes besides the root. Auxiliary nodes, which are not valid, may come on top."""

    def origin(self, row: int, node: int, depth: int) -> str:
        """What of it proposed ``node`` of ``row``, at ``depth`` >= 1, in the last draft, which was
        traced; in a word or two, for people to see."""
        return self.name

    @abstractmethod
    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """Learn what became of the tree. Called after every cycle, empty trees included."""

    @abstractmethod
    def keep(self, rows: list[int]) -> None:
        """Keep only ``rows``, in that order."""
