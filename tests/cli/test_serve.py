from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_the_directory_one_is_in_is_served_by_its_name(
    run: Run, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(target)
    monkeypatch.setattr("jakiro.engine.scheduler.Scheduler", lambda *_, **__: None)
    monkeypatch.setattr("jakiro.serve.server.serve", lambda *_, announce, **__: announce())
    result = run("serve", "--target", ".")
    assert result.exit_code == 0
    assert f"{Path(target).name} at http://" in result.stderr
