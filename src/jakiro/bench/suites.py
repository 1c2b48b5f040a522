"""What is measured: rows (methods) x tasks x temperatures, declared in one place.

A suite is a TOML file, one of the package or one of a user::

    tasks = ["humaneval", "gsm8k"]
    temperatures = [0.0, 1.0]

    [[rows]]
    name = "deterministic tree"
    drafter = "prompt_lookup"
    tree = "dynamic:5,6,16"
    noise_aware = false
    options = { max_ngram = 3 }

Without tasks the shipped sets are measured, without temperatures greedy decoding, without rows
every drafter that the target has. On the command line a row is written as
``NAME=DRAFTER@TREE,noise_aware=false``; everything but the drafter may be left out.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jakiro.api import AUTO
from jakiro.bench.records import read_record
from jakiro.bench.runner import PLAIN
from jakiro.errors import ConfigError, DataError, UnknownName

TRANSFORMERS = "transformers"
"""The row of ``model.generate``."""
UNTRAINED = "untrained:"
"""Before the name of a trained drafter: a head of its sizes with fresh weights."""

_OPTION = re.compile(r"^(?P<rest>.*),(?P<key>rule|noise_aware|compile)=(?P<value>[^,]*)$")
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Row:
    """A method: a drafter with its tree and rule, under the name it has in tables."""

    name: str
    drafter: str
    """A registered name, a checkpoint directory, or a name to be found among given heads; such a
    name after ``untrained:`` is a head of those sizes that has learnt nothing."""
    tree: str | None = None
    """None: the tree that the drafter recommends."""
    rule: str = "match"
    noise_aware: bool = True
    compile: bool = False
    """Target and drafter of this row alone, through the compiler."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the drafter's class, before what its checkpoint recommends."""
    weights: str | None = None
    """Digest of the checkpoint that was measured; known once it is loaded."""

    def __post_init__(self) -> None:
        if self.name in (PLAIN, TRANSFORMERS):
            raise ConfigError(f"the name {self.name!r} is taken; give the row another one")

    @property
    def is_auto(self) -> bool:
        """Whether how much is drafted is chosen cycle by cycle."""
        return self.tree is not None and self.tree.partition(":")[0] == AUTO

    @classmethod
    def parse(cls, text: str) -> Row:
        """``[NAME=]DRAFTER[@TREE][,rule=RULE][,noise_aware=false][,compile=true]``; ``ConfigError``
        otherwise."""
        rest, options = text, {}
        while found := _OPTION.match(rest):
            rest, key, value = found.groups()
            options[key] = value
        name, has_name, described = rest.partition("=")
        drafter, _, tree = (described if has_name else name).partition("@")
        noise_aware, compiled = options.get("noise_aware", "true"), options.get("compile", "false")
        are_said = noise_aware in _BOOLEANS and compiled in _BOOLEANS
        if not drafter or (has_name and not name) or not are_said:
            raise ConfigError(
                f"cannot read the method {text!r}; write DRAFTER, DRAFTER@TREE or "
                "NAME=DRAFTER@TREE,rule=RULE,noise_aware=false,compile=true"
            )
        return cls(
            name=name if has_name else text,
            drafter=drafter,
            tree=tree or None,
            rule=options.get("rule", "match"),
            noise_aware=_BOOLEANS[noise_aware],
            compile=_BOOLEANS[compiled],
        )


@dataclass(frozen=True, slots=True)
class Suite:
    """A declared set of measurements; see the module."""

    tasks: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (0.0,)
    rows: tuple[Row, ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    transformers: bool = False
    """Whether ``model.generate`` is measured as well, plain and with what it has for speed."""

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ConfigError("a suite needs at least one temperature")
        for kind, values in (("task", self.tasks), ("temperature", self.temperatures)):
            reject_doubles(kind, values)
        reject_doubles("method", [row.name for row in self.rows])


def reject_doubles(kind: str, values: Iterable[object]) -> None:
    """Raise ``ConfigError`` where two of ``values`` are equal: they would share a place."""
    doubles = [str(value) for value, count in Counter(values).items() if count > 1]
    if doubles:
        raise ConfigError(f"the {kind} {doubles[0]!r} is given twice; give each one once")


def suite_names() -> list[str]:
    """Names of the suites inside the package."""
    entries = (files("jakiro.bench") / "declared").iterdir()
    return sorted(Path(entry.name).stem for entry in entries if entry.name.endswith(".toml"))


def load_suite(source: str) -> Suite:
    """The suite of a name or TOML file.

    Raises:
        UnknownName: neither a suite of the package nor a file.
        DataError: the file cannot be read as a suite.
        ConfigError: two rows, tasks or temperatures are the same.
    """
    if source in suite_names():
        text = (files("jakiro.bench") / "declared" / f"{source}.toml").read_text("utf-8")
    elif Path(source).is_file():
        try:
            text = Path(source).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {source!r}: {error}") from error
    else:
        raise UnknownName("suite", source, [*suite_names(), "a TOML file"])
    try:
        return read_record(Suite, tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{source} is not TOML: {error}") from error
