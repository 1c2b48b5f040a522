"""A small language model of the same tokenizer drafts (Leviathan et al., arXiv 2211.17192; Chen et
al., arXiv 2302.01318), here a tree of candidates that may lean to the sampling noise."""

from __future__ import annotations

from jakiro.drafters.model_drafter import ModelDrafter


class DraftModel(ModelDrafter):
    """The whole tree of the plan, in every cycle."""

    name = "draft_model"
