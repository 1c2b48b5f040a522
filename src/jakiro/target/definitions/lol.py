"""Lower layers matter: the contrast with an amateur that was taught to err, at the last layer and
at a lower one, drawn to what the model says when it is told to be truthful (Chen et al., LOL,
arXiv 2408.08769)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.target.definitions.base import Definition, Encode, Redefined, Said, Source
from jakiro.target.definitions.contrast import check_contrast, contrast, plausible
from jakiro.target.target import Target


@dataclass(frozen=True)
class LowerLayers(Definition):
    """``layer``: the lower one, entering that block (None: half way up; in the amateur at the same
    height). ``share``: the weight of its contrast. ``instruction``: put before the text for a
    second look of the target, whose preference over its first counts ``truth`` times; empty: no
    second look."""

    alpha: float = 0.1
    beta: float = 0.5
    share: float = 0.3
    layer: int | None = None
    instruction: str = ""
    truth: float = 0.5

    name = "lol"
    needs_amateur = True

    def __post_init__(self) -> None:
        check_contrast(self.alpha, self.beta)
        for name, value in (("share", self.share), ("truth", self.truth)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, got {value}")

    def redefine(self, target: Target, amateur: Target | None, encode: Encode) -> Target:
        assert amateur is not None
        height, above = target.num_layers, amateur.num_layers
        layer = height // 2 if self.layer is None else self.layer
        if not 0 <= layer < height:
            raise ConfigError(f"layer must be from 0 to {height - 1}, got {self.layer}")
        others = [Source(amateur, (layer * above // height,))]
        if self.instruction:
            before = tuple(encode(self.instruction))
            if len(before) > target.context_length - 2:
                raise ConfigError(
                    f"the instruction has {len(before)} tokens, and the context of the target, "
                    f"{target.context_length}, must hold a text behind it; give a shorter one"
                )
            others.append(Source(target, before=before))
        return Redefined(target, self._join, (layer,), others)

    def _join(self, said: list[Said]) -> Tensor:
        expert, amateur, *told = said
        first = expert.logits.log_softmax(-1)
        last = contrast(first, amateur.logits.log_softmax(-1), self.beta)
        low, low_amateur = (each.early[0].log_softmax(-1) for each in (expert, amateur))
        lower = contrast(low, low_amateur, self.beta)
        logits = (1 - self.share) * last + self.share * lower
        for each in told:
            logits = logits + self.truth * (each.logits.log_softmax(-1) - first)
        return plausible(logits, expert.logits, self.alpha)
