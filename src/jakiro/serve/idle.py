"""Fields of the OpenAI API and of vLLM's that change no answer here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jakiro.serve.fields import Asked


class Idle(Asked):
    """The first concern the operator of a service only, and are ignored. The others are let in with
    the value that leaves the answer as it is."""

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
