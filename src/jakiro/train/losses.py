"""How far predicted features are from true ones, and predicted tokens from the target's.

Per branch: smooth L1 between features, and cross-entropy against the distribution the frozen LM
head gives the true feature (arXiv 2401.15077, 2502.06282). The mask goes by the *predicted* token.

Decoupled experts are judged by what they are drafted with: the cross-entropy is that of their
mixture, and each expert's feature counts by its share in the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.experts import HeadOutput
from jakiro.drafters.nn import HeadConfig
from jakiro.target.target import Target
from jakiro.train.config import ExpertShare, LossOptions
from jakiro.train.features import Lesson
from jakiro.train.frozen import chunk_rows

Kernel = Callable[
    [Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None, Tensor]
]
"""``score``, or the same compiled."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Of J passes with C branches each, in float32. ``feature`` and ``token`` [J, C]: means over
    the wanted positions. ``ranks`` and ``valid`` [J, C, B, T]: where the target's own first choice
    stands among the tokens predicted at feature s (0: first), and was it to be predicted.
    ``balance`` and ``similarity``: what ``LossOptions`` says of them."""

    feature: Tensor
    token: Tensor
    ranks: Tensor
    valid: Tensor
    balance: Tensor
    similarity: Tensor

    @property
    def hits(self) -> Tensor:
        """[J, C, B, T] bool: was the target's own first choice predicted."""
        return (self.ranks == 0) & self.valid

    def total(self, options: LossOptions) -> Tensor:
        """The scalar that is minimised: mean over passes of the weighted branches."""
        ahead = torch.arange(self.feature.shape[1], device=self.feature.device)
        both = options.feature_weight * self.feature + options.token_weight * self.token
        main = (both * options.second_branch**ahead).sum(1).mean()
        return main + options.balance * self.balance + options.diversity * self.similarity


def share_of(sizes: HeadConfig, options: LossOptions) -> ExpertShare | None:
    """The ``share`` that ``measure`` is asked for, of a head of that kind."""
    return options.expert_share if sizes.branches == "decoupled" else None


class _Guess(NamedTuple):
    """What the pairs predict for one position ahead: ``features`` [B, N, K, H], and the logarithm
    of their weights [B, N, K]."""

    features: Tensor
    log_weights: Tensor

    @classmethod
    def alone(cls, features: Tensor) -> _Guess:
        """One feature [B, N, H] per pair."""
        features = features[..., None, :]
        return cls(features, torch.zeros_like(features[..., 0], dtype=torch.float32))

    @classmethod
    def first(cls, output: HeadOutput, share: ExpertShare | None) -> _Guess:
        """The first branch: the experts one by one where their ``share`` is asked for."""
        if share is None or output.experts is None:
            return cls.alone(output.next)
        # A gate may be so sure that a weight underflows: its logarithm has no gradient.
        return cls(output.experts.features, output.experts.weights.float().clamp_min(1e-9).log())


class _Judged(NamedTuple):
    """Of P guesses: losses [P], ranks [P, M] and which of the M positions counted [P, M]."""

    feature: Tensor
    token: Tensor
    rank: Tensor
    counts: Tensor


def score(
    logits: Tensor, gates: Tensor | None, truth: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What ``measure`` computes of logits, and nothing else: what pays when it is compiled.

    From ``logits`` [P, M, K, V], logarithms of their experts' weights [P, M, K, 1] (None: one
    expert), the target's logits ``truth`` [M, V] and the ``share`` [P, M] of each row -> summed
    log-likelihoods [P]; how many tokens come before the target's likeliest [P, M] int32; how much
    each expert explains [P, M, K] (None: one expert, all of it); the gradient of the cross-entropy
    in the logits."""
    truth = truth.float()
    best = truth.argmax(-1, keepdim=True).expand(len(logits), -1, -1)
    expected = truth.softmax(-1)
    log_probs = logits.float().log_softmax(-1)
    joint = log_probs if gates is None else log_probs + gates
    mixed = joint[..., 0, :] if gates is None else joint.logsumexp(-2)
    ranks = (mixed > mixed.gather(-1, best)).sum(-1, dtype=torch.int32)
    likelihood = ((mixed * expected).sum(-1) * share).sum(1)
    explained = None
    if gates is None:
        error = log_probs.exp_().sub_(expected[:, None])
    else:
        owned = joint.sub_(mixed[..., None, :]).exp_().mul_(expected[:, None])
        explained = owned.sum(-1)
        error = log_probs.exp_().mul_(explained[..., None]).sub_(owned)
    return likelihood, ranks, explained, error.mul_(share[..., None, None]).to(logits.dtype)


def measure(
    outputs: Sequence[HeadOutput],
    lesson: Lesson,
    target: Target,
    share: ExpertShare | None = None,
    kernel: Kernel = score,
) -> Losses:
    """Losses of a rollout. Pair i predicts feature i + 1 with branch 1, i + 2 with branch 2.
    ``share``: measure the experts of a decoupled head, not their sum. ``kernel``: a compiled
    ``score``."""
    batch, length, _ = lesson.features.shape
    index = lesson.wanted.flatten().nonzero()[:, 0]
    branches = [
        [_Guess.first(output, share), *map(_Guess.alone, output.ahead)] for output in outputs
    ]
    # Guesses of several experts are judged apart, all others at once.
    alike = 1 if share is not None else len(branches[0])
    groups = [range(alike), range(alike, len(branches[0]))]
    parts = [
        _judge(
            [[guesses[c] for c in group] for guesses in branches],
            group.start,
            index,
            lesson,
            target,
            share,
            kernel,
        )
        for group in groups
        if len(group)
    ]
    feature, token, rank, counts = (
        torch.cat([each.unflatten(0, (len(outputs), -1)) for each in measures], 1)
        for measures in zip(*parts, strict=True)
    )
    shape = (*feature.shape, batch * length)
    ranks = torch.zeros(shape, dtype=torch.int32, device=index.device)
    valid = torch.zeros(shape, dtype=torch.bool, device=index.device)
    ranks[..., index], valid[..., index] = rank, counts
    pairs = index[index % length > 0]
    pairs = pairs // length * (length - 1) + pairs % length - 1
    spread = [_spread(output, pairs) for output in outputs]
    balance, similarity = (torch.stack(each).mean() for each in zip(*spread, strict=True))
    ranks, valid = (each.unflatten(-1, (batch, length)) for each in (ranks, valid))
    return Losses(feature, token, ranks, valid, balance, similarity)


def _judge(
    guesses: Sequence[Sequence[_Guess]],
    ahead: int,
    index: Tensor,
    lesson: Lesson,
    target: Target,
    share: ExpertShare | None,
    kernel: Kernel,
) -> _Judged:
    """Judge branches ``ahead``, ``ahead + 1``, ... (from 0) of every pass at the wanted positions
    ``index`` [M]."""
    length = lesson.features.shape[1]
    truth = lesson.features.flatten(0, 1)[index].float()
    place = index % length
    features, log_weights, counts = [], [], []
    for number, branches in enumerate(guesses):
        for distance, guess in enumerate(branches, ahead + 1):
            pair = place - distance
            # Rows of B x (T - 1) pairs; where no such pair exists any row will do, weighing 0.
            row = (index - place) // length * (length - 1) + pair.clamp_min(0)
            features.append(guess.features.flatten(0, 1)[row].float())
            log_weights.append(guess.log_weights.flatten(0, 1)[row])
            counts.append(pair >= number)
    predicted, weight = torch.stack(features), torch.stack(counts).float()
    mean = weight / weight.sum(1, keepdim=True).clamp_min(1)
    gate = torch.stack(log_weights)
    token, rank, explained = _SoftCrossEntropy.apply(predicted, gate, truth, mean, target, kernel)  # type: ignore[no-untyped-call]
    parts = {"gate": gate.detach().exp(), "responsibility": explained}
    best = F.one_hot(explained.argmax(-1), explained.shape[-1]).float()
    of_expert = parts.get(share or "gate", best)
    apart = F.smooth_l1_loss(predicted, truth[:, None].expand_as(predicted), reduction="none")
    distance = (apart.mean(-1) * of_expert).sum(-1)
    return _Judged((distance * mean).sum(1), token, rank, weight > 0)


def _spread(output: HeadOutput, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Of the ``pairs`` [M] of a pass: how unevenly the gate uses the experts (1: evenly; Switch
    Transformer, arXiv 2101.03961), and how alike the active experts' features are."""
    none = output.next.new_zeros(())
    if output.gates is None or not len(pairs):
        return none, none
    probs = output.gates.flatten(0, 1)[pairs].float().softmax(-1)
    first = F.one_hot(probs.argmax(-1), probs.shape[-1]).float().mean(0)
    balance = probs.shape[-1] * (first * probs.mean(0)).sum()
    if output.experts is None:
        return balance, none
    features = output.experts.features.flatten(0, 1)[pairs].float()
    apart = (features[:, :, None] - features[:, None]).square().mean(-1)
    count = features.shape[1]
    return balance, ((-apart).exp().sum((1, 2)) - count).mean() / (count * (count - 1))


class _SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy between the target's distribution and mixtures of the head's, through a frozen
    LM head.

    Logits of a large vocabulary are the largest tensors of the whole step. Here they live for one
    chunk of rows only: the gradient with respect to the features is taken at once, and the
    target's distribution serves all predictions of a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        log_weights: Tensor,
        truth: Tensor,
        share: Tensor,
        target: Target,
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``predicted`` [P, M, K, H], ``log_weights`` [P, M, K], ``truth`` [M, H], ``share``
        [P, M] -> losses [P]; how many tokens come before the target's likeliest [P, M] int32; how
        much of the target's distribution each expert explains [P, M, K]."""
        count, rows, experts, _ = predicted.shape
        losses = predicted.new_zeros(count)
        ranks = torch.zeros(count, rows, dtype=torch.int32, device=predicted.device)
        explained = torch.ones_like(log_weights)
        gradient = torch.zeros_like(predicted)
        chunk = chunk_rows(predicted.device, count * experts * target.vocab_size)
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                features = predicted[:, part].detach().requires_grad_()
                logits = target.lm_head(features)
            gates = None if experts == 1 else log_weights.detach()[:, part, :, None]
            likelihood, ranks[:, part], of_expert, error = kernel(
                logits.detach(), gates, target.lm_head(truth[part]), share[:, part]
            )
            losses -= likelihood
            if of_expert is not None:
                explained[:, part] = of_expert
            (gradient[:, part],) = torch.autograd.grad(logits, features, error)
        ctx.save_for_backward(gradient, explained * share[..., None])
        ctx.mark_non_differentiable(ranks, explained)
        return losses, ranks, explained

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor, _ranks: Tensor, _explained: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient, owned = ctx.saved_tensors
        scale = upstream[:, None, None]
        return gradient * scale[..., None], -owned * scale, None, None, None, None
