"""Conversion between dataclasses and JSON.

Readers are tolerant, so that two versions of this package can read each other's records: unknown keys are ignored,
missing keys take the field's default, and an unknown value of an enum becomes its member ``UNKNOWN``. Only a record of
a newer schema is refused, since its known fields may have another meaning.
"""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Mapping
from enum import Enum, StrEnum

from skyrl_modal.dataclass import MISSING, fields, is_dataclass

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    T = TypeVar("T")

_SCHEMA_FIELD = "schema_version"


class ProtocolError(Exception):
    """A record that cannot be read: it is not JSON, misses a required field, or has a newer schema."""


class TolerantStrEnum(StrEnum):
    """A string enum whose unknown values become its member ``UNKNOWN``, instead of raising ValueError."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        unknown = cls.__members__.get("UNKNOWN")
        return unknown if isinstance(value, str) else None


def encode(record: Any) -> dict[str, Any]:
    """Convert a dataclass to a JSON object.

    Args:
        record: A dataclass instance. Its fields hold JSON scalars, enums, tuples, mappings and dataclasses.

    Returns:
        A dict that ``json.dumps`` accepts.
    """
    return {field.name: _encode_value(getattr(record, field.name)) for field in fields(record)}


def _encode_value(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {key: _encode_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode_value(item) for item in value]
    return value


def decode(cls: type[T], data: object) -> T:
    """Convert a JSON object to a dataclass.

    Args:
        cls: The dataclass.
        data: What ``encode`` returned, possibly in another version of this package.

    Raises:
        ProtocolError: The data is not an object, misses a field that has no default, holds a value of another type or
            one that the class refuses, or has a newer ``schema_version``.
    """
    if not isinstance(data, Mapping):
        raise ProtocolError(f"{cls.__name__}: expected a JSON object, found {type(data).__name__}")
    known = _fields(cls)
    supported = known[_SCHEMA_FIELD][1] if _SCHEMA_FIELD in known else None
    version = data.get(_SCHEMA_FIELD, supported)
    if supported is not None and (not isinstance(version, int) or isinstance(version, bool)):
        raise ProtocolError(f"{cls.__name__}.{_SCHEMA_FIELD}: expected a whole number, found {version!r}")
    if supported is not None and version > supported:
        raise ProtocolError(
            f"{cls.__name__} has schema {version}; upgrade skyrl_modal, which reads schemas up to {supported}"
        )
    values = {}
    for name, (hint, default) in known.items():
        if name in data:
            values[name] = _decode_value(hint, data[name], f"{cls.__name__}.{name}")
        elif default is MISSING:
            raise ProtocolError(f"{cls.__name__}.{name} is missing")
    try:
        return cls(**values)
    except ValueError as error:  # of the class's own checks
        raise ProtocolError(f"{cls.__name__}: {error}") from error


#: The type and the default of each field, of classes that were decoded before.
_known_fields: dict[type, Mapping[str, tuple[Any, Any]]] = {}


def _fields(cls: Any) -> Mapping[str, tuple[Any, Any]]:
    """Return the type and the default of each field; a default factory counts as a default."""
    if cls in _known_fields:
        return _known_fields[cls]
    result = {}
    for field in fields(cls):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = None
        result[field.name] = (_resolve(cls, field.type), default)
    _known_fields[cls] = result
    return result


def _resolve(cls: type, hint: Any) -> Any:
    """Return the type that an annotation names. ``typing.get_type_hints`` would do the same in ten times the time."""
    if not isinstance(hint, str):
        return hint
    return eval(hint, vars(sys.modules[cls.__module__]))  # noqa: S307  # text of the class's own source


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in hint.__args__:
            return None
        items = [item for item in hint.__args__ if item is not types.NoneType]
        return _decode_value(items[0], value, where) if len(items) == 1 else _decode_scalar(hint, value, where)
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _type_error(where, "a list", value)
        item_hint = hint.__args__[0]
        return tuple(_decode_value(item_hint, item, f"{where}[{number}]") for number, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _type_error(where, "an object", value)
        item_hint = hint.__args__[1]
        return {key: _decode_value(item_hint, item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return decode(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise _type_error(where, "a string", value) from None
    return _decode_scalar(hint, value, where)


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is object:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _decode_number(value, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _type_error(where, getattr(hint, "__name__", str(hint)), value)
    return value


def _decode_number(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ProtocolError(f"{where}: expected a finite number, found {number}")
    return number


def _type_error(where: str, expected: str, value: object) -> ProtocolError:
    return ProtocolError(f"{where}: expected {expected}, found {type(value).__name__}")


def to_json(record: Any) -> str:
    """Return a record as JSON text, one key per line, as it is written to files."""
    return json.dumps(encode(record), indent=1, sort_keys=True) + "\n"


def from_json(cls: type[T], text: str | bytes) -> T:
    """Read a record from JSON text.

    Raises:
        ProtocolError: The text is not JSON, or ``decode`` refuses it.
    """
    try:
        return decode(cls, json.loads(text))
    except ValueError as error:
        raise ProtocolError(f"{cls.__name__}: not JSON: {error}") from error
    except RecursionError as error:
        raise ProtocolError(f"{cls.__name__}: objects or lists are nested too deeply") from error


def encode_tagged(record: Any) -> dict[str, Any]:
    """Convert one member of a union to a JSON object whose key ``type`` names the class."""
    return {"type": type(record).__name__, **encode(record)}


def decode_tagged(union: Any, data: object) -> Any:
    """Convert a JSON object to the member of a union that its key ``type`` names.

    Args:
        union: A union of dataclasses, such as ``RankMessage``.
        data: What ``encode_tagged`` returned.

    Returns:
        The record; None for a type that this version does not know, which a reader ignores.

    Raises:
        ProtocolError: The data is not an object, or ``decode`` refuses it.
    """
    if not isinstance(data, Mapping):
        raise ProtocolError(f"expected a JSON object, found {type(data).__name__}")
    for cls in union.__args__:
        if cls.__name__ == data.get("type"):
            return decode(cls, data)
    return None
