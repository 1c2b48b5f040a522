"""How much surer of the target's choice a head may be than its logits say, and what of the noise.

A head learns how likely the target finds each token. A tree asks which one the target will choose:
the largest of its logits plus the noise that both know, ``T G``. Draft logits q are means over what
the target's might be, and means are flatter: say those are ``a q``, and errors of Gumbel noise of
scale s. Then that is token x with the probability ``softmax((a q + T G) / s)_x``. So two numbers
per branch, ``a / s`` and ``1 / s``, turn scores into chances of acceptance, and a above 1 into
better guesses. They are fitted on held-out text, half greedy and half at T = 1, as confidence is
calibrated by a temperature (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.experts import HeadOutput
from jakiro.engine.engine import Engine
from jakiro.errors import DataError
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.target.target import Target
from jakiro.train.data import Records, check_fast, tokenise
from jakiro.train.features import Lesson, generator_of, teach
from jakiro.train.finished import Finished
from jakiro.train.frozen import chunk_rows
from jakiro.train.learner import Tally, add_up, readings
from jakiro.train.rollout import rollout
from jakiro.train.samples import Batch

FACTORS = tuple(round(0.4 * 1.15**power, 2) for power in range(14))
WEIGHTS = (0.7, 0.8, 0.9, 1.0)
GRID = tuple(Sharpness(each, round(each * weight, 2)) for weight in WEIGHTS for each in FACTORS)
"""What is tried: each of the ``FACTORS`` for the logits, and for the noise by so much of it."""
EVERY = 4
"""Of the positions that carry loss one of so many is asked."""
LONGEST = 2048
"""Tokens of a sample that ``sharpen`` reads."""


@torch.no_grad()
def surprise(output: HeadOutput, lesson: Lesson, target: Target, indices: Sequence[int]) -> Tally:
    """``surprise_c`` of each branch c, from 1: by how much the target's choices surprise a head of
    each sharpness of ``GRID``, in nats. ``indices`` [B] of the samples seed the noise."""
    names = [f"surprise_{branch}" for branch in range(1, 2 + len(output.ahead))]
    tally = {name: torch.zeros(2, len(GRID), device=lesson.features.device) for name in names}
    for row, index in enumerate(indices):
        everywhere, generator = lesson.wanted[row].nonzero()[::EVERY, 0], generator_of(0, index)
        # Every second place is asked with noise: parts are even.
        for places in everywhere.split(2 * chunk_rows(everywhere.device, 2 * target.vocab_size)):
            wanted = target.lm_head(lesson.features[row, places]).float()
            noise = torch.empty(wanted.shape).exponential_(generator=generator)
            noise = -noise.log().to(wanted.device)
            is_noisy = torch.arange(len(places), device=noise.device) % 2 == 1
            choices = (wanted + is_noisy[:, None] * noise).argmax(-1)
            for branch, law in enumerate(_laws(output, row, places, target), 1):
                # Branch c predicts from the pair c places before.
                asked = places >= branch
                greedy, noisy = (asked & (is_noisy == kind) for kind in (False, True))
                alike = _nats(law[greedy], choices[greedy]).repeat(len(WEIGHTS))
                known = (law[noisy].add(noise[noisy], alpha=weight) for weight in WEIGHTS)
                apart = torch.cat([_nats(each, choices[noisy]) for each in known])
                count = asked.sum().expand_as(alike)
                tally[names[branch - 1]] += torch.stack([alike + apart, count])
    return tally


def _nats(logits: Tensor, chosen: Tensor) -> Tensor:
    """By how much ``chosen`` [M] surprises ``logits`` [M, V] times each of the ``FACTORS``."""
    nats = [F.cross_entropy(each * logits, chosen, reduction="sum") for each in FACTORS]
    return torch.stack(nats)


@torch.inference_mode()
def sharpen(
    directory: Path, engine: Engine, data: Sequence[Path], out: Path, count: int = 256
) -> list[Sharpness]:
    """Write the head in ``directory``, made for the target of ``engine``, to ``out``, its weights
    as they are, with the sharpness of its branches as measured on ``count`` samples: the first ones
    of each of the JSONL files ``data``, as many of each, rounded up. Returns that sharpness, of the
    first branch first.

    Raises what ``Finished.read`` and ``write`` raise, ``ConfigError`` for a head that needs
    features which the target cannot give, and ``DataError`` where a file cannot be read, or there
    is no sample in them.
    """
    finished, target = Finished.read(directory, engine.target, out, "sharpened"), engine.target
    sizes = finished.head.config
    target.check_features(sizes.needs)
    # As it will draft.
    head = deepcopy(finished.head).to(target.device, target.dtype).eval()
    check_fast(engine.tokenizer)
    of_each, length = -(-count // len(data)), min(LONGEST, target.context_length)
    tallies: list[Tally] = []
    for path in data:
        pieces = tokenise(Records([path]), engine.tokenizer, length, target.vocab_size)
        for ids, marks in islice(pieces, of_each):
            number = torch.tensor([len(tallies)])
            batch = Batch(
                torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([marks]), number
            )
            lesson = teach(target, batch, needs=sizes.needs)
            outputs = rollout(head, lesson.embeddings, lesson.inputs, 1, sizes.contrast_levels)
            tallies.append(surprise(outputs[0], lesson, target, number.tolist()))
    if not tallies:
        raise DataError("the data holds no sample with a token to learn from")
    found = fitted(readings(add_up(tallies)), 1 + sizes.contrast_levels)
    options = dict(finished.notes.get("options", {})) | {"sharpness": found}
    finished.write(finished.head, out, {"options": options})
    return found


def _laws(output: HeadOutput, row: int, places: Tensor, target: Target) -> Iterator[Tensor]:
    """Of each branch its logits [M, V] for what the target chooses after ``places`` [M]."""
    pairs = (places - 1).clamp_min(0)
    if output.experts is None:
        yield target.lm_head(output.next[row, pairs]).float()
    else:
        features, weights = (part[row, pairs] for part in output.experts)
        laws = target.lm_head(features).float().log_softmax(-1)
        yield (laws + weights.float().log()[..., None]).logsumexp(-2)
    for ahead, feature in enumerate(output.ahead, 2):
        yield target.lm_head(feature[row, (places - ahead).clamp_min(0)]).float()


def fitted(held_out: Mapping[str, Sequence[float]], branches: int) -> list[Sharpness]:
    """The least surprised sharpness of each branch, from the readings of ``surprise``; ``AS_SAID``
    where nothing was asked."""
    found = [list(held_out[f"surprise_{branch}"]) for branch in range(1, branches + 1)]
    return [GRID[nats.index(min(nats))] if any(nats) else AS_SAID for nats in found]
