"""From plain data, as JSON and TOML hold it, back to the dataclasses it was made of."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jakiro.errors import DataError

T = TypeVar("T")


def read_record(kind: type[T], record: Any, where: str) -> T:
    """``record`` as a ``kind``: a dataclass of dataclasses, lists, tuples of one type, dicts,
    optional values, texts, numbers and booleans, and what may be anything. ``where`` names the
    source in errors.

    Raises:
        DataError: an entry is missing, unknown or of another type.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a table of entries, got {_shown(record)}")
    assert is_dataclass(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(record) - set(known)):
        raise DataError(f"{where}: unknown entries {', '.join(unknown)}; known: {', '.join(known)}")
    needed = [name for name, field in known.items() if not _has_default(field)]
    if missing := [name for name in needed if name not in record]:
        raise DataError(f"{where} lacks the entries {', '.join(missing)}")
    hints = get_type_hints(kind)
    values = {name: _read(hints[name], value, f"{where}, {name}") for name, value in record.items()}
    made: T = kind(**values)
    return made


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _read(hint: Any, value: Any, where: str) -> Any:
    """``value`` as what the type ``hint`` asks for."""
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    container = get_origin(hint)
    if container in (list, tuple) and isinstance(value, list):
        inner = get_args(hint)[0]
        return container(
            _read(inner, each, f"{where} {place}") for place, each in enumerate(value, start=1)
        )
    if container is dict and isinstance(value, dict):
        inner = get_args(hint)[1]
        return {name: _read(inner, each, f"{where}, {name}") for name, each in value.items()}
    if is_dataclass(hint):
        return read_record(hint, value, where)  # type: ignore[arg-type]
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise DataError(f"{where}: expected {hint}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
