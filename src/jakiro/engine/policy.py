"""How much is drafted: the limits of every cycle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """Of one cycle: the plan of all rows, and per row the deepest node, which may lie deeper than
    the plan goes. Where every depth is 0 the rows are decoded plainly, whatever the drafter feeds
    besides its draft."""

    plan: TreePlan
    depths: list[int]

    @property
    def is_off(self) -> bool:
        return max(self.depths) == 0


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one cycle; ``rest_ms``: all of it but drafting."""

    draft_ms: float
    rest_ms: float


class Policy(ABC):
    """Chooses limits within ``plan``. Rows are numbered as in the batch.

    The choice may depend on what became of earlier drafts, never on a draft it limits: then a law
    that nodes are drawn from stays what it is.
    """

    is_queued = False
    """Whether others wait for the rows of those that end: then no row is the last."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan

    @abstractmethod
    def begin(self, is_drafted: bool = True) -> None:
        """Append one row; ``is_drafted``: False for one that is decoded plainly to its end."""

    @abstractmethod
    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        """For the next cycle; per row its committed tokens and the deepest node of any use."""

    @abstractmethod
    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        """What became of the cycle those limits were for."""

    @abstractmethod
    def keep(self, rows: list[int]) -> None:
        """Keep only ``rows``, in that order."""

    @abstractmethod
    def explain(self) -> str:
        """One line: what is done now, and why."""


class Fixed(Policy):
    """The whole plan in every cycle."""

    def begin(self, is_drafted: bool = True) -> None:
        """Every row is treated alike."""

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        return DraftLimits(self.plan, caps)

    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        """Whatever happens, the plan stays."""

    def keep(self, rows: list[int]) -> None:
        """There is nothing to renumber."""

    def explain(self) -> str:
        return f"the fixed tree {self.plan}"
