"""From what a user calls a drafter, a name or a directory, to the drafter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.errors import CheckpointError, ConfigError, PairMismatch, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.bundled import BUNDLED_TARGET, bundled_drafter
from jakiro.hub.models import load_model, second_model, tokenizer_beside
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan


@dataclass(frozen=True, slots=True)
class Source:
    """What a drafter will be made of: a method without a checkpoint or the directory of one, and
    the arbiters over it, the outermost first."""

    inner: registry.Entry | Path
    arbiters: tuple[registry.Entry, ...] = ()

    @classmethod
    def find(cls, chosen: str | Path, is_bundled: bool) -> Source:
        """What a registered name or a directory stands for; ``is_bundled``: whether the target is
        the bundled one.

        Raises:
            UnknownName: it is neither.
            PairMismatch: it is trained, and for another target.
            CheckpointError: it is trained, and there is no checkpoint of that name.
        """
        name = str(chosen)
        entry = registry.ENTRIES.get(name) if isinstance(chosen, str) else None
        if entry is None and name and Path(chosen).is_dir():
            return cls(Path(chosen))
        outer, plus, inner = name.partition("+")
        if plus and outer in registry.arbiters():
            found = cls.find(inner, is_bundled)
            return replace(found, arbiters=(registry.find(outer), *found.arbiters))
        if entry is None:
            over = (f"{arbiter}+ one of these" for arbiter in registry.arbiters())
            raise UnknownName("drafter", name, [*registry.names(), "a directory", *over])
        if not entry.is_trained:
            return cls(entry)
        advice = f"(jakiro train --method {name} --target ...) and give its directory"
        if not is_bundled:
            raise PairMismatch(
                f"the bundled {name!r} was trained for the bundled target {BUNDLED_TARGET!r}; "
                f"train one for yours {advice}"
            )
        directory = bundled_drafter(name)
        if not directory.is_dir():
            raise CheckpointError(f"no {name!r} is bundled; train one {advice}")
        return cls(directory)

    def load(
        self, target: Target, tokenizer: object, options: Mapping[str, Any] | None = None
    ) -> Drafter:
        """The drafter for ``target``, whose ``tokenizer`` may be None. ``options`` are those of the
        class below all arbiters, and go before what its checkpoint recommends.

        Raises:
            ConfigError: the class has no such option, or not of that value.
            CheckpointError: the checkpoint is damaged or incomplete.
            PairMismatch: the drafter was made for another target.
        """
        options = options or {}
        if isinstance(self.inner, Path):
            drafter = _from_directory(self.inner, target, tokenizer, options)
        else:
            parts = [target] if self.inner.made_of == "target" else []
            drafter = _make(self.inner.load(), parts, options)
        for entry in reversed(self.arbiters):
            drafter = entry.load()(drafter)
        return drafter


def of_model(
    model: PreTrainedModel,
    target: Target,
    tokenizers: tuple[object, object],
    options: Mapping[str, Any] | None = None,
) -> Drafter:
    """A language model as drafter; ``tokenizers``: its own and that of the target, or None. Raises
    ``ConfigError``, and ``PairMismatch`` where their tokens are not the same."""
    wrapped = second_model(model, target, tokenizers, "the draft model")
    return _make(registry.of_models().load(), [wrapped, target], options or {})


def _from_directory(
    directory: Path, target: Target, tokenizer: object, options: Mapping[str, Any]
) -> Drafter:
    """The drafter whose checkpoint this is, with the tree and the options its notes recommend."""
    if checkpoint.holds_model(directory):
        model = load_model(directory, target.dtype, target.device)
        return of_model(model, target, (tokenizer_beside(directory), tokenizer), options)
    head = checkpoint.load(directory, target.fingerprint())
    head.to(device=target.device, dtype=target.dtype)
    advice, kind = checkpoint.advice(directory), registry.find(head.config.method).load()
    try:
        drafter = _make(kind, [head, target], {**advice.options, **options})
        if advice.tree is not None:
            drafter.plan = TreePlan.parse(advice.tree)
    except ConfigError as error:
        if options:
            raise
        raise CheckpointError(
            f"what {directory / checkpoint.CONFIG_FILE} recommends cannot be: {error}"
        ) from error
    return drafter


def _make(kind: type, parts: Sequence[object], options: Mapping[str, Any]) -> Drafter:
    """``kind(*parts, **options)``; ``ConfigError`` where the class has no such options."""
    try:
        drafter: Drafter = kind(*parts, **options)
    except TypeError as error:
        known = list(signature(kind).parameters)[len(parts) :]
        raise ConfigError(
            f"a drafter of the class {kind.__name__} cannot have the options {dict(options)} "
            f"({error}); it takes {', '.join(known) or 'none'}"
        ) from error
    return drafter
