"""From what a user calls a drafter, a name or a directory, to the drafter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformers import PreTrainedModel

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.errors import CheckpointError, ConfigError, PairMismatch, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.bundled import BUNDLED_TARGET, bundled_drafter
from jakiro.hub.files import reading
from jakiro.hub.models import load_model, second_model, tokenizer_beside
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan


@dataclass(frozen=True, slots=True)
class Source:
    """What a drafter will be made of: a method without a checkpoint or the directory of one, and
    the arbiters over it, the outermost first. ``driver``: the method that drives a language model
    in that directory; None: the one of models, or whose head is there."""

    inner: registry.Entry | Path
    arbiters: tuple[registry.Entry, ...] = ()
    driver: registry.Entry | None = None

    @classmethod
    @reading()
    def find(cls, chosen: str | Path, is_bundled: bool) -> Source:
        """What a registered name or a directory stands for; ``is_bundled``: whether the target is
        the bundled one.

        Raises:
            UnknownName: it is neither.
            PairMismatch: it is trained, and for another target.
            CheckpointError: it is trained, and there is no checkpoint of that name, or it is a path
                that cannot be read.
        """
        name = str(chosen)
        entry = registry.ENTRIES.get(name) if isinstance(chosen, str) else None
        if entry is None and name and Path(chosen).is_dir():
            return cls(Path(chosen))
        outer, plus, inner = name.partition("+")
        if plus and outer in registry.arbiters():
            found = cls.find(inner, is_bundled)
            return replace(found, arbiters=(registry.find(outer), *found.arbiters))
        if plus and outer in registry.drivers():
            return replace(cls.find(inner, is_bundled), driver=registry.find(outer))
        if entry is None:
            over = (f"{arbiter}+ one of these" for arbiter in registry.arbiters())
            models = (f"{driver}+ the directory of a model" for driver in registry.drivers())
            raise UnknownName("drafter", name, [*registry.names(), "a directory", *over, *models])
        if not entry.is_trained:
            return cls(entry)
        advice = f"(jakiro train --method {name} --target ...) and give its directory"
        if not is_bundled:
            raise PairMismatch(
                f"the bundled {name!r} was trained for the bundled target {BUNDLED_TARGET!r}; "
                f"train one for yours {advice}"
            )
        is_driver = name in registry.drivers()
        directory = bundled_drafter(registry.of_models().name if is_driver else name)
        if not directory.is_dir():
            raise CheckpointError(f"no {name!r} is bundled; train one {advice}")
        return cls(directory, driver=entry if is_driver else None)

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
            drafter = self._from_directory(self.inner, target, tokenizer, options)
        else:
            parts = [target] if self.inner.made_of == "target" else []
            drafter = _make(self.inner.load(), parts, options)
        for entry in reversed(self.arbiters):
            drafter = entry.load()(drafter)
        return drafter

    def _from_directory(
        self, directory: Path, target: Target, tokenizer: object, options: Mapping[str, Any]
    ) -> Drafter:
        """The drafter whose checkpoint this is, with the tree and the options its notes
        recommend."""
        if checkpoint.holds_model(directory):
            driver = self.driver or registry.of_models()
            model = _model_in(directory, target, tokenizer)
            return _make(driver.load(), [model, target], options)
        if self.driver is not None:
            raise ConfigError(
                f"{self.driver.name} drives a language model, and {str(directory)!r} is a head; "
                "give the directory of the model"
            )
        head = checkpoint.load(directory, target.fingerprint())
        head.to(device=target.device, dtype=target.dtype)
        advice, entry = checkpoint.advice(directory), registry.find(head.config.method)
        parts: list[object] = [head, target]
        if entry.made_of == "model_head":
            parts.insert(1, _model_of_head(directory, target, tokenizer))
        try:
            drafter = _make(entry.load(), parts, {**advice.options, **options})
            if advice.tree is not None:
                drafter.plan = TreePlan.parse(advice.tree)
        except ConfigError as error:
            if options:
                raise
            raise CheckpointError(
                f"what {directory / checkpoint.CONFIG_FILE} recommends cannot be: {error}"
            ) from error
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


def _model_of_head(directory: Path, target: Target, tokenizer: object) -> Target:
    """The draft model that the head in ``directory`` was trained on."""
    known = checkpoint.read_config(directory).get("notes", {}).get("draft_model", {})
    if not {"path", "fingerprint"} <= known.keys():
        raise CheckpointError(
            f"{directory / checkpoint.CONFIG_FILE} does not say for which draft model the head is; "
            "train it again"
        )
    model = _model_in((directory / known["path"]).resolve(), target, tokenizer)
    checkpoint.check_target(directory, known["fingerprint"], model.fingerprint(), "draft model")
    return model


def _model_in(directory: Path, target: Target, tokenizer: object) -> Target:
    """The language model in ``directory``, which may draft for ``target``."""
    model = load_model(directory, target.dtype, target.device)
    return second_model(model, target, (tokenizer_beside(directory), tokenizer), "the draft model")


def _make(kind: type, parts: Sequence[object], options: Mapping[str, Any]) -> Drafter:
    """``kind(*parts, **options)``; ``ConfigError`` where the class has no such options, or one is
    not what its annotation says: a class checks ranges, and would fail on it in mid-answer."""
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    for name, value in options.items():
        if not _is_a(hints.get(name, object), value):
            said = signature(kind).parameters[name].annotation
            raise ConfigError(
                f"the option {name} of a {kind.__name__} must be a finite value of the type "
                f"{said}, got {value!r}"
            )
    try:
        drafter: Drafter = kind(*parts, **options)
    except TypeError as error:
        known = list(signature(kind).parameters)[len(parts) :]
        raise ConfigError(
            f"a drafter of the class {kind.__name__} cannot have the options {dict(options)} "
            f"({error}); it takes {', '.join(known) or 'none'}"
        ) from error
    return drafter


def _is_a(hint: Any, value: object) -> bool:
    """Whether ``value`` is what an annotation says, a number finite and no bool; what is in a
    container, and which of some words it is, is not asked."""
    if isinstance(hint, UnionType):
        return any(_is_a(each, value) for each in get_args(hint))
    kind = get_origin(hint) or hint
    if kind is Literal:
        return True
    if kind is float:
        return _is_a(int, value) or (isinstance(value, float) and math.isfinite(value))
    if not isinstance(kind, type):  # like Any
        return True
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
