"""Jakiro* (arXiv 2502.06282) without its bias: a static tree, each expert with children of its own.

The head is trained as a weighted sum (two GELU experts, a gate of two rows, no contrast). The
released code draws the children from both experts' distributions joined, and verifies with
probabilities they were not drawn with; its texts differ from the target's. Here the experts
propose in turn and nothing is drawn, or, for rules that take drawn trees, children are drawn from
the experts' mixture, without replacement, and verified by that same law.
"""

from __future__ import annotations

from jakiro.drafters.feature import FeatureDrafter
from jakiro.tree.shapes import TreePlan


class JakiroStar(FeatureDrafter):
    """The common cycle over the union of the experts' candidates, in 26 nodes on 6 levels."""

    plan = TreePlan.parse("static:jakiro_star")
