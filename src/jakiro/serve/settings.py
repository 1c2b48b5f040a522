"""What the operator of a server decides."""

from __future__ import annotations

from dataclasses import dataclass

from jakiro.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and names of one server. Raises ``ConfigError``."""

    model_name: str
    api_key: str | None = None
    """What clients have to send as ``Authorization: Bearer``, without space around it; None: nobody
    is asked."""
    max_body_bytes: int = 1 << 20
    max_prompt_tokens: int | None = None
    """None: as many as there is room for."""
    max_open: int = 256
    """Answers on their way at once, those that wait included."""
    deadline_s: float | None = None
    """Seconds after which an answer ends with what there is; requests may ask for fewer."""

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ConfigError("the served model needs a name")
        if self.api_key is not None:
            self._check_key(self.api_key.strip())  # files of secrets end with a newline
        for name in ("max_body_bytes", "max_prompt_tokens", "max_open"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, got {self.deadline_s}")

    def _check_key(self, key: str) -> None:
        """Keep ``key`` if clients can send it."""
        if len(key) < 8:
            raise ConfigError("an API key needs 8 characters or more")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "an API key is made of printable ASCII characters, which HTTP headers can carry; "
                "choose another"
            )
        object.__setattr__(self, "api_key", key)
