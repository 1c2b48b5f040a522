"""How large a tree may grow, and the named static shapes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, product
from operator import mul
from typing import Literal, get_args

from jakiro.errors import ConfigError, check_int

Path = tuple[int, ...]
Kind = Literal["chain", "static", "beam", "dynamic"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EAGLE1_PATHS: tuple[Path, ...] = (
    *((i,) for i in range(4)),
    *((0, i) for i in range(3)),
    *((1, i) for i in range(2)),
    *((2, i) for i in range(2)),
    (3, 0),
    *((0, 0, i) for i in range(3)),
    *((0, 1, i) for i in range(2)),
    *((0, 2, i) for i in range(2)),
    (1, 0, 0),
    *((0, 0, 0, i) for i in range(3)),
    *((0, 0, 0, 0, i) for i in range(2)),
)
"""The 25-node tree of EAGLE-1 (arXiv 2401.15077): a digit is the rank among the parent's
candidates."""

MAX_NODES = 4096
"""Of a shape that is written by its fans."""

MAX_SIZE = 1 << 14
"""Depth, width and budget at most: more is a slip of the finger."""

FORMS = (
    "chain:DEPTH, dynamic:DEPTH,WIDTH,BUDGET[,REACH], beam:DEPTH,WIDTH, static:FANxFANx.., "
    "static:eagle1 or static:RANK_PATHS"
)
"""How plans are written."""

NAMED_PATHS = {"eagle1": EAGLE1_PATHS, "jakiro_star": (*EAGLE1_PATHS, (0,) * 6)}
"""Published static trees."""


@dataclass(frozen=True, slots=True)
class TreePlan:
    """The limits of a draft.

    ``kind``: ``chain`` (width 1), ``static`` (``paths``), ``dynamic`` (the ``width`` best nodes of
    each level are expanded by their ``width`` best children, the ``budget`` best of all kept:
    EAGLE-2, arXiv 2406.16858), ``beam`` (of each level the ``width`` best nodes are kept, and all
    of them expanded: where nodes are drawn, the stochastic beam search of RSD-S, arXiv
    2402.14160). ``depth``: levels below the root. ``budget``: nodes without root. ``reach``: a
    dynamic tree ends at a level if the chance that the text goes through one of the nodes to be
    expanded there, by their scores, is less, as a mean over the rows (Dynamic Depth Decoding,
    arXiv 2409.00142).
    ``chain``, ``static``, ``beam`` and ``parse`` make consistent ones. Raises ``ConfigError``.
    """

    kind: Kind = "dynamic"
    depth: int = 5
    width: int = 8
    budget: int = 16
    paths: tuple[Path, ...] = ()
    reach: float = 0.0

    def __post_init__(self) -> None:
        for name in ("depth", "width", "budget"):
            check_int(name, getattr(self, name), 1, MAX_SIZE)
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.kind == "static") != bool(self.paths):
            raise ConfigError("paths belong to a static tree, and a static tree needs paths")
        if not 0 <= self.reach <= (1 if self.kind == "dynamic" else 0):
            raise ConfigError(
                f"reach is a chance between 0 and 1, of a dynamic tree only; got {self.reach} of "
                f"a {self.kind} tree"
            )
        known = set(self.paths)
        for path in self.paths:
            if not path or min(path) < 0:
                raise ConfigError(f"a path is a non-empty list of ranks >= 0, got {path}")
            if len(path) > 1 and path[:-1] not in known:
                raise ConfigError(f"path {path} hangs in the air: add its parent {path[:-1]}")

    @classmethod
    def chain(cls, depth: int) -> TreePlan:
        """One candidate per level."""
        return cls("chain", depth=depth, width=1, budget=depth)

    @classmethod
    def static(cls, paths: tuple[Path, ...]) -> TreePlan:
        """A fixed shape, given as rank paths; the order of ``paths`` does not matter."""
        ordered = tuple(sorted(set(paths), key=lambda path: (len(path), path)))
        if not ordered:
            raise ConfigError("a static tree needs at least one path")
        width = max(max(path) for path in ordered) + 1
        return cls("static", max(map(len, ordered)), width, len(ordered), ordered)

    def limited(self, depth: int, width: int, budget: int) -> TreePlan:
        """The part of this plan within these limits, of the same kind; a drafted tree of it is
        what is left of a tree of the whole plan. Limits beyond its own change nothing."""
        if self.kind == "chain":
            return TreePlan.chain(min(self.depth, depth, budget))
        if self.kind == "static":
            paths = [path for path in self.paths if len(path) <= depth and max(path) < width]
            return TreePlan.static(tuple(paths[:budget]))
        if self.kind == "beam":
            width = min(self.width, width, budget)
            return TreePlan.beam(min(self.depth, depth, budget // width), width)
        limits = (min(self.depth, depth), min(self.width, width), min(self.budget, budget))
        return TreePlan("dynamic", *limits, reach=self.reach)

    @property
    def num_nodes(self) -> int:
        """Nodes without root that a full tree has: its budget, or fewer where depth and width do
        not yield as many."""
        if self.kind != "dynamic":
            return self.budget
        return min(self.budget, self.width + (self.depth - 1) * self.width**2)

    @classmethod
    def branching(cls, fans: tuple[int, ...]) -> TreePlan:
        """The static shape in which every node of level i has ``fans[i]`` children (RSD-C, arXiv
        2402.14160; SpecInfer, arXiv 2305.09781); ``(K, 1, 1)`` are K paths (SpecTr, arXiv
        2310.15141)."""
        if not fans or min(fans) < 1:
            raise ConfigError(f"a level needs at least one child for each node above, got {fans}")
        size = sum(accumulate(fans, mul))
        if size > MAX_NODES:
            raise ConfigError(f"fans {fans} make {size} nodes; at most {MAX_NODES} are allowed")
        levels = (product(*map(range, fans[: i + 1])) for i in range(len(fans)))
        return cls.static(tuple(path for level in levels for path in level))

    @classmethod
    def beam(cls, depth: int, width: int) -> TreePlan:
        """``width`` nodes on each level."""
        return cls("beam", depth, width, depth * width)

    @property
    def is_whole(self) -> bool:
        """Whether what its nodes are has no say in how many there are: no budget drops one because
        of its score, and no rank is left out."""
        if self.kind == "static":
            known = {(), *self.paths}
            complete = all(
                path[-1] == 0 or (*path[:-1], path[-1] - 1) in known for path in self.paths
            )
            return complete and self.budget >= len(self.paths)
        if self.kind == "chain" and self.width > 1:
            return False
        return self.kind != "dynamic" and self.budget >= self.depth * self.width

    @classmethod
    def parse(cls, text: str) -> TreePlan:
        """``chain:DEPTH``, ``dynamic:DEPTH,WIDTH,BUDGET[,REACH]``, ``beam:DEPTH,WIDTH``, or
        ``static:`` and one of: the name of a published tree (``eagle1``), the children of every
        node level by level (``4x2x1``), rank paths (``0,1,0.0``). ``str`` of a plan gives its text.
        """
        kind, _, rest = text.partition(":")
        try:
            if kind == "chain":
                return cls.chain(int(rest))
            if kind == "dynamic":
                sizes, reach = rest.split(",")[:3], rest.split(",")[3:] or ["0"]
                depth, width, budget = map(int, sizes)
                (chance,) = map(float, reach)
                return cls("dynamic", depth, width, budget, reach=chance)
            if kind == "beam":
                depth, width = (int(part) for part in rest.split(","))
                return cls.beam(depth, width)
            if kind == "static" and rest in NAMED_PATHS:
                return cls.static(NAMED_PATHS[rest])
            if kind == "static" and "x" in rest:
                return cls.branching(tuple(int(fan) for fan in rest.split("x")))
            if kind == "static":
                paths = (path.split(".") for path in rest.split(","))
                return cls.static(tuple(tuple(int(rank) for rank in path) for path in paths))
        except ConfigError:
            raise
        except ValueError:
            pass
        raise ConfigError(
            f"cannot read the tree {text!r}; write {FORMS}, for example dynamic:5,8,16, "
            "static:4x2x1 or static:0,1,0.0"
        )

    def __str__(self) -> str:
        """The form that ``parse`` reads."""
        if self.kind == "chain":
            return f"chain:{self.depth}"
        if self.kind == "dynamic":
            reach = f",{self.reach:g}" if self.reach else ""
            return f"dynamic:{self.depth},{self.width},{self.budget}{reach}"
        if self.kind == "beam":
            return f"beam:{self.depth},{self.width}"
        return "static:" + ",".join(".".join(map(str, path)) for path in self.paths)
