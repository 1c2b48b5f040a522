"""What the system refuses is told as an error of this package, wherever a path comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jakiro.errors import CheckpointError
from jakiro.hub.checkpoint import read_config
from jakiro.hub.convert.importing import check_free
from jakiro.hub.convert.source import read_source
from jakiro.hub.drafters import Source
from jakiro.hub.models import check_tokenizer, tokenizer_beside


@pytest.mark.parametrize(
    "look",
    [
        check_free,
        check_tokenizer,
        read_config,
        read_source,
        tokenizer_beside,
        lambda path: Source.find(path, is_bundled=False),
    ],
)
def test_a_path_that_cannot_be_looked_at(
    look: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who may not enter a directory; whoever runs the tests may enter any."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refused)
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(CheckpointError, match=f"Permission denied: '{tmp_path}"):
        look(tmp_path)
