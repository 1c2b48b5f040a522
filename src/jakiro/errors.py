"""Every error a user can cause, as one family.

JakiroError
├── ConfigError        a setting or argument is wrong (also a ValueError; exit code 2)
│   └── UnknownName    no drafter, rule, model or task has that name
├── PromptError        a prompt is empty, too long or not made of known tokens
├── DataError          a data line cannot be read; names the file and the line
├── TargetRefused      the target cannot be driven losslessly; names the reason
├── PairMismatch       drafter and target do not belong together
├── CheckpointError    a checkpoint is missing, damaged or does not fit its config
├── DrafterFailed      the process of a drafter failed or ended; names the reason
├── RowFailed          one request died (for example of NaN logits); the others go on
├── Busy               too many requests wait; says when to come again
└── Closed             a scheduler that takes no more requests

Every message says what is wrong, the value, what is allowed, and what to do.
"""

from __future__ import annotations

from typing import Any


class JakiroError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(JakiroError, ValueError):
    """A setting or argument is outside what is allowed."""


class UnknownName(ConfigError):
    """A name that no registry knows."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class PromptError(JakiroError, ValueError):
    """A prompt that cannot be generated from."""


class DataError(JakiroError, ValueError):
    """A line of a data file that cannot be used."""


class TargetRefused(JakiroError):
    """A target that cannot be driven losslessly."""


class PairMismatch(JakiroError):
    """A drafter that was made for another target."""


class CheckpointError(JakiroError):
    """A checkpoint that is missing, damaged or misshapen."""


class DrafterFailed(JakiroError):
    """A drafter whose own process failed or ended."""


class RowFailed(JakiroError):
    """One request that could not be finished."""


class Busy(JakiroError):
    """Too many requests wait already."""

    def __init__(self, num_waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"{num_waiting} requests wait already; try again in about {retry_after_s:.1f} s"
        )
        self.retry_after_s = retry_after_s
        """An estimate, in seconds."""


class Closed(JakiroError):
    """A scheduler that takes no more requests."""


LARGEST_INT = 2**63 - 1
"""What tensors of integers hold."""


def check_int(name: str, value: Any, low: int, high: int = LARGEST_INT) -> None:
    """Raise ``ConfigError`` unless ``value`` is an integer, and no bool, in ``low`` to ``high``."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not low <= value <= high:
        has_high = high < LARGEST_INT or (is_int and value > high)
        allowed = f"in {low}..{high}" if has_high else f"of at least {low}"
        raise ConfigError(f"{name} must be an integer {allowed}, got {value!r}")
