"""One line per planted bug: ``python -m tests.planted``. Exit status 1 if one goes unseen."""

from __future__ import annotations

import sys

from tests.planted.bugs import BUGS, catches


def main() -> int:
    num_missed = 0
    for bug in BUGS:
        bug.oracle(*bug.arguments)
        is_caught = bool(catches(bug))
        num_missed += not is_caught
        verdict = "caught" if is_caught else "MISSED"
        print(f"{verdict}  {bug.name:32} {bug.oracle_name}", flush=True)
    print(f"{len(BUGS) - num_missed} of {len(BUGS)} planted bugs caught")
    return int(num_missed > 0)


if __name__ == "__main__":
    sys.exit(main())
