"""Plans: what is refused, and how they are written."""

from __future__ import annotations

import pytest

from jakiro.errors import ConfigError
from jakiro.tree.shapes import EAGLE1_PATHS, TreePlan


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("chain:4", TreePlan.chain(4)),
        ("dynamic:5,8,16", TreePlan("dynamic", 5, 8, 16)),
        ("dynamic:9,6,20,0.4", TreePlan("dynamic", 9, 6, 20, reach=0.4)),
        ("static:eagle1", TreePlan.static(EAGLE1_PATHS)),
        ("beam:3,4", TreePlan("beam", 3, 4, 12)),
        ("static:2x1", TreePlan.static(((0,), (1,), (0, 0), (1, 0)))),
        ("static:0,1,0.0,0.12", TreePlan.static(((0,), (1,), (0, 0), (0, 12)))),
    ],
)
def test_parse(text: str, plan: TreePlan) -> None:
    assert TreePlan.parse(text) == plan
    assert TreePlan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chain",
        "chain:x",
        "chain:0",
        "dynamic:1,2",
        "dynamic:5,0,9",
        "dynamic:5,8,9,1.5",
        "dynamic:5,8,9,0.1,0.2",
        "dynamic:5,8,9,nan",
        "static:mine",
        "static:0.0",
        "static:2x0",
        "static:99x99x99",
        "static:x",
        "beam:3",
        "beam:0,2",
        "9",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        TreePlan.parse(text)


@pytest.mark.parametrize("field", ["depth", "width", "budget"])
def test_limits_are_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} must be an integer in 1\.\.16384, got 0"):
        TreePlan(**{field: 0})


def test_paths_must_hang_together() -> None:
    with pytest.raises(ConfigError, match=r"add its parent \(1,\)"):
        TreePlan.static(((0,), (1, 0)))
    with pytest.raises(ConfigError, match="at least one path"):
        TreePlan.static(())
    with pytest.raises(ConfigError, match="ranks >= 0"):
        TreePlan.static(((0,), (-1,)))
    with pytest.raises(ConfigError, match="static tree needs paths"):
        TreePlan("static")


def test_static_sizes_follow_from_the_paths() -> None:
    plan = TreePlan.static(((2,), (0, 1), (0,), (0,)))
    assert (plan.depth, plan.width, plan.budget) == (2, 3, 3)
    assert plan.paths == ((0,), (2,), (0, 1))


def test_published_static_trees_have_their_published_sizes() -> None:
    eagle1, star = (TreePlan.parse(f"static:{name}") for name in ("eagle1", "jakiro_star"))
    sizes = [
        [sum(len(path) == depth for path in plan.paths) for depth in range(1, 7)]
        for plan in (eagle1, star)
    ]
    assert sizes == [[4, 8, 8, 3, 2, 0], [4, 8, 8, 3, 2, 1]]
    assert (eagle1.budget, star.budget) == (25, 26)


def test_a_part_of_a_beam_is_a_beam() -> None:
    whole = TreePlan.beam(5, 4)
    assert whole.limited(3, 4, 20) == TreePlan.beam(3, 4)
    assert whole.limited(5, 2, 6) == TreePlan.beam(3, 2)
    assert whole.limited(9, 9, 2) == TreePlan.beam(1, 2)
