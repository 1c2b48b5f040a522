"""Fields of the OpenAI API and of vLLM's that change no answer here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jakiro.serve.fields import Asked


class Idle(Asked):
    """The first concern the operator of a service only, and are ignored. The others are let in with
    the value that leaves the answer as it is, and so is ``null`` for any field."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    cache_salt: str | None = None

    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    verbosity: Literal["medium"] | None = None
    use_beam_search: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        """Fields that are not known here may be absent by ``null``, too."""
        if not isinstance(body, dict):
            return body
        return {
            name: value
            for name, value in body.items()
            if value is not None or name in cls.model_fields
        }
