"""EAGLE-1 (arXiv 2401.15077): the one-expert head behind its static tree of 25 nodes."""

from __future__ import annotations

from jakiro.drafters.feature import FeatureDrafter
from jakiro.tree.shapes import TreePlan


class Eagle1(FeatureDrafter):
    """The common cycle; only nodes that have children are fed."""

    plan = TreePlan.parse("static:eagle1")
