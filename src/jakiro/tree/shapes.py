"""How large a tree may grow, and the named static shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jakiro.errors import ConfigError

Path = tuple[int, ...]

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

NAMED_PATHS = {"eagle1": EAGLE1_PATHS, "jakiro_star": (*EAGLE1_PATHS, (0,) * 6)}
"""Published static trees."""


@dataclass(frozen=True, slots=True)
class TreePlan:
    """The limits of a draft.

    ``kind``: ``chain`` (width 1), ``static`` (``paths``), ``dynamic`` (the ``width`` best nodes of
    each level are expanded by their ``width`` best children, the ``budget`` best of all kept:
    EAGLE-2, arXiv 2406.16858). ``depth``: levels below the root. ``budget``: nodes without root.
    ``chain``, ``static`` and ``parse`` make consistent ones. Raises ``ConfigError``.
    """

    kind: Literal["chain", "static", "dynamic"] = "dynamic"
    depth: int = 5
    width: int = 8
    budget: int = 16
    paths: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in ("depth", "width", "budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kind not in ("chain", "static", "dynamic"):
            raise ConfigError(f"kind must be chain, static or dynamic, got {self.kind!r}")
        if (self.kind == "static") != bool(self.paths):
            raise ConfigError("paths belong to a static tree, and a static tree needs paths")
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
        limits = (min(self.depth, depth), min(self.width, width), min(self.budget, budget))
        return TreePlan("dynamic", *limits)

    @property
    def num_nodes(self) -> int:
        """Nodes without root that a full tree has: its budget, or fewer where depth and width do
        not yield as many."""
        if self.kind != "dynamic":
            return self.budget
        return min(self.budget, self.width + (self.depth - 1) * self.width**2)

    @classmethod
    def parse(cls, text: str) -> TreePlan:
        """``chain:DEPTH``, ``dynamic:DEPTH,WIDTH,BUDGET``, ``static:`` and the name of a published
        tree, like ``static:eagle1``, or ``static:`` and rank paths like ``0,1,0.0``. ``str`` of a
        plan gives its text."""
        kind, _, rest = text.partition(":")
        try:
            if kind == "chain":
                return cls.chain(int(rest))
            if kind == "dynamic":
                depth, width, budget = (int(part) for part in rest.split(","))
                return cls("dynamic", depth, width, budget)
            if kind == "static" and rest in NAMED_PATHS:
                return cls.static(NAMED_PATHS[rest])
            if kind == "static":
                paths = (path.split(".") for path in rest.split(","))
                return cls.static(tuple(tuple(int(rank) for rank in path) for path in paths))
        except ConfigError:
            raise
        except ValueError:
            pass
        raise ConfigError(
            f"cannot read the tree {text!r}; write chain:DEPTH, dynamic:DEPTH,WIDTH,BUDGET, "
            "static:eagle1 or static:RANK_PATHS, for example dynamic:5,8,16 or static:0,1,0.0"
        )

    def __str__(self) -> str:
        """The form that ``parse`` reads."""
        if self.kind == "chain":
            return f"chain:{self.depth}"
        if self.kind == "dynamic":
            return f"dynamic:{self.depth},{self.width},{self.budget}"
        return "static:" + ",".join(".".join(map(str, path)) for path in self.paths)
