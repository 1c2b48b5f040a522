"""The benchmark of real sizes, at tiny ones on the CPU: all of its code but the graphs of CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import sizes
from scripts.marks import TIMES

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_both_parts_run_and_texts_are_equal(tmp_path: Path) -> None:
    out = tmp_path / "sizes.json"
    sizes.main(["--tiny", "--device", "cpu", "--model", "Qwen3-8B", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["environment"]["num_threads"] >= 1

    (pair,) = report["pair"]
    assert (pair["dtype"], pair["num_bugs"], pair["differences"]) == ("float32", 0, [])
    assert pair["tau"] > 1, "nothing was drafted"
    assert len(pair["outcomes"]) == 15 and all(
        set(n) == {"equal"} for n in pair["outcomes"].values()
    )

    cells = report["costs"]
    wanted = {
        (head, compiled, *place)
        for head in ("none", *sizes.HEADS)
        for compiled in (False, True)
        for place in sizes.TINY.places(compiled)
    }
    places = ("head", "is_compiled", "batch", "context")
    assert {tuple(cell[name] for name in places) for cell in cells} == wanted
    for cell in cells:
        is_drafted = cell["head"] != "none"
        assert all(cell[name] > 0 for name in TIMES if is_drafted or name != "draft_ms")
        # Four levels: the contrast spares the Jakiro head one forward.
        forwards = {"none": 0, "eagle2": 4, "jakiro": 3}[cell["head"]]
        assert cell["num_draft_forwards"] == forwards
        assert (cell["target_compile_ms"] > 0) is cell["is_compiled"]
        assert ("tree_ms" in cell) is (not is_drafted and not cell["temperature"])
