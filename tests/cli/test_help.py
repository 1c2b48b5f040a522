"""``docs/commands.md`` is the snapshot of every option."""

from __future__ import annotations

from inspect import signature

from jakiro.cli.serve import serve
from jakiro.engine.scheduler import Scheduler
from scripts.docs import PAGE, render


def test_a_server_has_the_defaults_of_its_scheduler() -> None:
    ours, theirs = signature(serve).parameters, signature(Scheduler).parameters
    for name in ours.keys() & theirs.keys():
        assert ours[name].default == theirs[name].default, name


def test_the_page_is_what_the_program_prints() -> None:
    assert PAGE.read_text("utf-8") == render(), (
        "options changed: run make docs and look at the diff"
    )
