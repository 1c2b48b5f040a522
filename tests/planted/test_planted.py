"""Every planted bug is caught by its oracle, and by nothing else: the oracle passes without it."""

from __future__ import annotations

import pytest

from tests.planted.bugs import BUGS, Bug, catches


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug: Bug) -> None:
    bug.oracle(*bug.arguments)
    assert catches(bug), f"{bug.oracle_name} does not see the bug {bug.name!r}"
