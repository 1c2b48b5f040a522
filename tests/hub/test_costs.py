"""Measured costs on disk, and when they are taken again."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest

import jakiro
from jakiro import api
from jakiro.engine.costs import Costs
from jakiro.errors import ConfigError
from jakiro.hub.costs import cache_directory, keep_costs, read_costs
from jakiro.target.target import Target
from tests.conformance import world

TABLE = Costs((1,), (1, 9), ((5.0, 9.0),), 8, (0.0, 0.0), (1,), (1,), (((1.0,),),))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAKIRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kept_by_everything_in_the_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_costs({"threads": 2}, {"a": 1})
    assert read_costs({"threads": 2}) == {"a": 1}
    assert read_costs({"threads": 3}) is None
    (file,) = place.iterdir()
    file.write_text("{", "utf-8")
    assert read_costs({"threads": 2}) is None
    place.joinpath("file").touch()
    monkeypatch.setenv("JAKIRO_CACHE", str(place / "file" / "below"))
    keep_costs({"threads": 2}, {"a": 1})  # cannot be written: no error
    monkeypatch.delenv("JAKIRO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/jakiro")


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("JAKIRO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    keep_costs({"threads": 2}, {"a": 1})
    assert read_costs({"threads": 2}) is None


def test_a_machine_is_measured_once_and_again_if_the_file_is_broken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def measured(*args: Any, **kwargs: Any) -> Costs:
        calls.append(args[2])
        return TABLE

    monkeypatch.setattr(api, "measure", measured)
    monkeypatch.setattr(Target, "compile", lambda *_: None)
    model = world.model("llama")
    for _ in range(2):
        engine = jakiro.load(model, "prompt_lookup", tree="auto")
    assert len(calls) == 1
    assert "verify costs" in engine.policy.explain()
    jakiro.load(model, "prompt_lookup", tree="auto", max_batch_size=2)
    assert len(calls) == 2
    for file in place.iterdir():
        file.write_text(file.read_text("utf-8").replace('"nodes"', '"knots"'), "utf-8")
    assert str(jakiro.load(model, "prompt_lookup", tree="auto:chain:3").plan) == "chain:3"
    jakiro.load(model, "prompt_lookup", tree="auto")
    assert len(calls) == 4
    with pytest.raises(ConfigError, match="cannot read the tree"):
        jakiro.load(model, "prompt_lookup", tree="auto:5")
    jakiro.load(model, "prompt_lookup", tree="auto", drafter_options={"max_ngram": 2})
    jakiro.load(model, "prompt_lookup", tree="auto", compile=True)
    assert len(calls) == 6
    # Where nothing is drafted, there is nothing to choose.
    assert "fixed" in jakiro.load(model, "none", tree="auto").policy.explain()
    assert len(calls) == 6


def test_what_is_measured_leaves_no_trace_in_the_drafter(place: Path) -> None:
    """Token recycling learns from whatever it drafts, and costs are taken on random tokens."""
    for _ in range(2):
        engine = jakiro.load(world.model("llama"), "token_recycling", tree="auto")
        assert not engine.drafter._matrix._rows  # type: ignore[attr-defined]
