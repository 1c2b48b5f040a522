"""``docs/commands.md`` is the snapshot of every option."""

from __future__ import annotations

from scripts.docs import PAGE, render


def test_the_page_is_what_the_program_prints() -> None:
    assert PAGE.read_text("utf-8") == render(), (
        "options changed: run make docs and look at the diff"
    )
