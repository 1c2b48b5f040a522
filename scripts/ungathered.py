"""What is gathering the free levels by parent worth?

The code that was released with the paper scores the children of the k-th node of the last fed
level's frontier from the k-th row fed, whoever its parent is. This package takes the row of its
ancestor. The other way is made here, around the bundled head, for the measurement only:

    python scripts/ungathered.py --task gsm8k --limit 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

import jakiro
from jakiro.bench.runner import PLAIN, Answer, EngineMethod, Promise, Request, measure
from jakiro.bench.summary import summarise
from jakiro.bench.workloads import load_tasks
from jakiro.drafters import feature
from jakiro.sampling.params import SamplingParams


def by_place(features: Tensor, rows: Tensor) -> Tensor:
    """Features [B, R, H] of the rows of the nodes' own places; ``rows`` [B, K] gives only K."""
    places = torch.arange(rows.shape[1], device=features.device) % features.shape[1]
    return features[:, places]


@dataclass(frozen=True, slots=True)
class Ungathered:
    """The same engine while its drafter pairs by place."""

    inner: EngineMethod
    name: str = "ungathered"
    promise: Promise = "exact"

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        with patch.object(feature, "gathered", by_place):
            return self.inner.answer(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=["humaneval", "gsm8k"])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--tree", default=None)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    plain = jakiro.load(drafter="none")
    drafted = EngineMethod(
        "gathered",
        jakiro.load(plain.target.model, "jakiro", tokenizer=plain.tokenizer, tree=args.tree),
    )
    methods = [EngineMethod(PLAIN, plain), drafted, Ungathered(drafted)]
    for task in load_tasks(args.task, args.limit):
        ids = [plain.encode(prompt) for prompt in task.prompts]
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature, max_new_tokens=args.max_new_tokens)
            requests = [
                Request(each, replace(params, seed=index))
                for index, each in enumerate(ids)
                if len(each) + args.max_new_tokens <= plain.target.context_length
            ]
            found = summarise(methods, requests, measure(methods, requests))
            assert len({one.output_sha256 for one in found}) == 1, "the texts must be equal"
            for one in found[1:]:
                alpha = " ".join(f"{rate.value:.3f}" for rate in one.alpha if rate)
                tau = one.tau
                assert tau is not None
                print(
                    f"{task.name}, T = {temperature:g}, {one.method}: τ {tau.value:.3f} "
                    f"({tau.interval_low:.3f} - {tau.interval_high:.3f}), α {alpha}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
