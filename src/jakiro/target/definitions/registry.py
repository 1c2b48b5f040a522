"""Every target definition by name. A new one is one file and one line here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from importlib import import_module

from jakiro.errors import ConfigError, UnknownName
from jakiro.target.definitions.base import Definition


@dataclass(frozen=True, slots=True)
class Entry:
    """``path`` is ``module:class`` of a ``Definition``; ``cost``: what it adds to a forward of the
    target. Its page is ``docs/definitions/NAME.md``."""

    name: str
    path: str
    summary: str
    cost: str

    def load(self) -> type[Definition]:
        """The class, imported now and not before."""
        module, _, name = self.path.partition(":")
        found: type[Definition] = getattr(import_module(module), name)
        return found


def _entry(name: str, kind: str, summary: str, cost: str) -> Entry:
    return Entry(name, f"jakiro.target.definitions.{name}:{kind}", summary, cost)


ENTRIES = {
    entry.name: entry
    for entry in (
        _entry(
            "contrastive",
            "Contrastive",
            "what the target prefers to a weaker model",
            "a forward of the amateur, and its KV",
        ),
        _entry(
            "dola",
            "DoLa",
            "what the last layer prefers to an early one, chosen at every position",
            "the head once for every candidate layer",
        ),
        _entry(
            "lol",
            "LowerLayers",
            "the contrast with an amateur at the last and at a lower layer, told to be truthful",
            "a forward of the amateur, the head twice; with an instruction a forward of the target",
        ),
        _entry(
            "scmoe",
            "SelfContrast",
            "what a mixture of experts prefers to itself with fewer experts",
            "a forward with fewer experts, and its KV",
        ),
        _entry(
            "ead",
            "EntropyAdaptive",
            "a smaller model while the entropy is low, the target where it is high",
            "less than nothing: mostly the smaller model's forward; two KV",
        ),
    )
}


def find(text: str) -> Definition:
    """The definition that ``NAME`` or ``NAME:SETTING=VALUE,..`` stands for.

    Raises:
        UnknownName: there is none of that name.
        ConfigError: it has no such setting, or not of that value.
    """
    name, _, rest = text.partition(":")
    if name not in ENTRIES:
        raise UnknownName("definition", name, list(ENTRIES))
    kind = ENTRIES[name].load()
    readers = {field.name: _READERS[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    settings = {}
    # A comma may stand in a text; one that ends a setting is followed by the next.
    for part in re.split(r",(?=\w+=)", rest) if rest else ():
        key, _, value = part.partition("=")
        if key not in readers:
            raise ConfigError(f"{name} has no setting {key!r}; it has {', '.join(readers)}")
        try:
            settings[key] = readers[key](value)
        except ValueError as error:
            raise ConfigError(f"cannot read {part!r} of {text!r}: {error}") from error
    return kind(**settings)


_READERS = {"float": float, "int": int, "int | None": int, "str": str}
"""How values of settings are read, by their type as it is written."""
