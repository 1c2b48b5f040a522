"""How far predicted features are from true ones, and predicted tokens from the target's.

Per branch: smooth L1 between features, and cross-entropy against the distribution the frozen LM
head gives the true feature (arXiv 2401.15077, 2502.06282). The mask goes by the *predicted* token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.experts import HeadOutput
from jakiro.target.target import Target
from jakiro.train.config import LossOptions
from jakiro.train.features import Lesson
from jakiro.train.frozen import CHUNK_ELEMENTS


@dataclass(frozen=True, eq=False)
class Losses:
    """Of J passes with C branches each, in float32. ``feature`` and ``token`` [J, C]: means over
    the wanted positions. ``hits`` and ``valid`` [J, C, B, T]: was the target's own first choice
    predicted at feature s, and was it to be predicted."""

    feature: Tensor
    token: Tensor
    hits: Tensor
    valid: Tensor

    def total(self, options: LossOptions) -> Tensor:
        """The scalar that is minimised: mean over passes of the weighted branches."""
        branches = self.feature.new_tensor([1.0, options.second_branch])[: self.feature.shape[1]]
        both = options.feature_weight * self.feature + options.token_weight * self.token
        return (both * branches).sum(1).mean()

    def accuracy(self) -> Tensor:
        """Share of hits [J, C]."""
        return self.hits.sum((2, 3)) / self.valid.sum((2, 3)).clamp_min(1)


def measure(outputs: Sequence[HeadOutput], lesson: Lesson, target: Target) -> Losses:
    """Losses of a rollout. Pair i predicts feature i + 1 with branch 1, i + 2 with branch 2."""
    batch, length, _ = lesson.features.shape
    index = lesson.wanted.flatten().nonzero()[:, 0]
    place = index % length
    truth = lesson.features.flatten(0, 1)[index].float()
    predictions, weights = [], []
    for number, output in enumerate(outputs):
        for ahead, features in enumerate((output.next, *output.ahead), 1):
            pair = place - ahead
            # Rows of B x (T - 1) pairs; where no such pair exists any row will do, weighing 0.
            row = (index - place) // length * (length - 1) + pair.clamp_min(0)
            predictions.append(features.flatten(0, 1)[row].float())
            weights.append((pair >= number).float())
    shape = (len(outputs), len(predictions) // len(outputs))
    predicted, weight = torch.stack(predictions), torch.stack(weights)
    share = weight / weight.sum(1, keepdim=True).clamp_min(1)
    distance = F.smooth_l1_loss(predicted, truth.expand_as(predicted), reduction="none").mean(-1)
    token, hit = _SoftCrossEntropy.apply(predicted, truth, share, target)  # type: ignore[no-untyped-call]
    dense = torch.zeros(2, len(weight), batch * length, dtype=torch.bool, device=truth.device)
    dense[0, :, index] = hit & (weight > 0)
    dense[1, :, index] = weight > 0
    hits, valid = dense.view(2, *shape, batch, length)
    return Losses((distance * share).sum(1).view(shape), token.view(shape), hits, valid)


class _SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy between the target's distribution and the head's, through a frozen LM head.

    Logits of a large vocabulary are the largest tensors of the whole step. Here they live for one
    chunk of rows only: the gradient with respect to the features is taken at once, and the
    target's distribution serves all predictions of a row.
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, truth: Tensor, share: Tensor, target: Target
    ) -> tuple[Tensor, Tensor]:
        """``predicted`` [P, M, H], ``truth`` [M, H], ``share`` [P, M] -> losses [P] and whether
        the likeliest token agrees [P, M]."""
        count, rows, _ = predicted.shape
        losses = predicted.new_zeros(count)
        hits = torch.zeros(count, rows, dtype=torch.bool, device=predicted.device)
        gradient = torch.zeros_like(predicted)
        budget = CHUNK_ELEMENTS.get(predicted.device.type, CHUNK_ELEMENTS["cuda"])
        chunk = max(1, budget // (count * target.vocab_size))
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            expected = target.lm_head(truth[part]).float()
            best = expected.argmax(-1, keepdim=True).expand(count, -1, -1)
            expected = expected.softmax(-1)
            with torch.enable_grad():
                features = predicted[:, part].detach().requires_grad_()
                logits = target.lm_head(features)
            log_probs = logits.detach().float().log_softmax(-1)
            hits[:, part] = (log_probs.gather(-1, best) >= log_probs.amax(-1, keepdim=True))[..., 0]
            losses -= ((log_probs * expected).sum(-1) * share[:, part]).sum(1)
            error = log_probs.exp_().sub_(expected).mul_(share[:, part, None])
            (gradient[:, part],) = torch.autograd.grad(logits, features, error.to(logits.dtype))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor, _hits: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None], None, None, None
