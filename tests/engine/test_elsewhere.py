"""On another device than the CPU's every drafter gives the oracle's text."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import cycle

import pytest
import torch

from jakiro.target.target import Target
from tests.conformance import world
from tests.conformance.guided import Guided
from tests.elsewhere import DEVICE, elsewhere

CASES = [
    "jakiro/frequent",
    "jakiro/decoupled",
    "medusa/wide",
    "kangaroo/wide",
    "sjd/wide",
    "token_recycling",
    "duo_attention",
]
"""One of each kind: a tree of a head, a draft vocabulary, one forward for all levels, layers of the
target, laws of its own, numbers of the host, a view."""
ROWS = (2, 0)


@pytest.fixture(scope="module")
def away() -> Target:
    with elsewhere():
        return Target(deepcopy(world.model("llama")).to(DEVICE))


@pytest.mark.parametrize(("case", "setting"), list(zip(CASES, cycle(world.SETTINGS), strict=False)))
def test_texts_are_those_of_the_oracle(
    away: Target, case: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.head
    monkeypatch.setattr(world, "head", lambda of, *args: made(of, *args).to(of.device))
    truths = [world.truth("llama", setting, row)[:9] for row in ROWS]
    texts = [[*world.prompt(row), *said] for row, said in zip(ROWS, truths, strict=True)]
    params = [replace(world.params(setting, row), max_new_tokens=9) for row in ROWS]
    with elsewhere():
        drafter = Guided(world.make_drafter(case, away), texts)
        engine = world.make_engine(away, drafter, world.TREES["dynamic"], max_batch_size=2)
        done = engine.generate([list(world.prompt(row)) for row in ROWS], params)
    assert [tuple(each.token_ids) for each in done] == truths, [each.error for each in done]
    assert engine.stats.tau > 1, "nothing was accepted"


def test_tensors_of_two_devices_do_not_meet() -> None:
    """Or nothing here would prove anything."""
    with elsewhere():
        there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
        assert (there[:, [0, 2]].sum().item(), (there * 2).tolist()) == (4, [[2.0] * 3] * 2)
        assert (there * torch.tensor(3)).cpu().equal(3 * here)
        for meet in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: here.index_add_(0, torch.zeros(2, dtype=torch.int64), there),
        ):
            with pytest.raises(RuntimeError, match="on lazy:0 and on the CPU"):
                meet()
