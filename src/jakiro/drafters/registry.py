"""Every drafter by name. A new method is one file and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from jakiro.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Entry:
    """``path`` is ``module:class``; ``is_trained``: needs a checkpoint made for its target."""

    name: str
    path: str
    summary: str
    is_trained: bool = False

    def load(self) -> type:
        """The class, imported now and not before."""
        module, _, name = self.path.partition(":")
        loaded: type = getattr(import_module(module), name)
        return loaded


_FEATURE = "jakiro.drafters.feature:FeatureDrafter"
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("jakiro", _FEATURE, "one layer, two experts: sum and contrast", is_trained=True),
        Entry("eagle2", _FEATURE, "one layer on the last feature, dynamic tree", is_trained=True),
        Entry("prompt_lookup", "jakiro.drafters.prompt_lookup:PromptLookup", "n-grams of the text"),
        Entry("none", "jakiro.drafters.none:NoDrafter", "plain decoding, the baseline"),
    )
}


def names() -> list[str]:
    """All registered names."""
    return list(ENTRIES)


def find(name: str) -> Entry:
    """The entry called ``name``; ``UnknownName`` if there is none."""
    if name not in ENTRIES:
        raise UnknownName("drafter", name, names())
    return ENTRIES[name]
