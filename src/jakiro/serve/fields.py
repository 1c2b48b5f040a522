"""What all bodies of requests have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator


def _unicode(text: str) -> str:
    """Refuses lone surrogates, which JSON can spell and no tokenizer can read."""
    text.encode()
    return text


AnyText = Annotated[str, AfterValidator(_unicode)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Asked(BaseModel):
    """Nothing is converted, nothing unknown is let in, no number is NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

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
