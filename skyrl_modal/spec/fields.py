"""Converters and validators that several specs share."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.variables import check_value

if TYPE_CHECKING:
    from skyrl_modal.declaration import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], None]

# Expressions are compiled on first use, since importing Launcher imports this module.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_TAG = r"[^\s,\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,64}"
#: Control characters, and halves of surrogate pairs, as Python decodes bytes that are not UTF-8.
_UNPRINTABLE = r"[\x00-\x1f\x7f\ud800-\udfff]"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_TAG_RULE = "1 to 64 characters without spaces, commas and control characters"
_NAME_REMEDY = "use 1 to 64 letters, digits, dots, dashes and underscores; start with a letter or digit"


def container_path(value: object, name: str) -> str:
    """Validate and normalize an absolute path in the container.

    Args:
        value: The path.
        name: The field that an error names.

    Raises:
        SpecError: The path is relative, is ``/``, or contains ``..`` or a control character, or is not valid Unicode.

    Example:
        >>> container_path("/root/data/", "mount_path")
        '/root/data'
    """
    remedy = 'pass an absolute path in the container below /, without "..", for example "/root/data"'
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/") or ".." in text.split("/"):
        raise SpecError(name, value, remedy)
    if re.search(_UNPRINTABLE, text):
        raise SpecError(name, value, "it contains a control character, or is not valid Unicode")
    normal = "/" + posixpath.normpath(text).lstrip("/")
    if normal == "/":
        raise SpecError(name, value, remedy)
    return normal


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder or is inside it. Both are normalized.

    Example:
        >>> is_below("/root/data/x", "/root/data"), is_below("/root/data2", "/root/data")
        (True, False)
    """
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def to_strings(value: str | Iterable[str]) -> Sequence[str]:
    """Convert to a tuple; a single string becomes a tuple of one. The validator refuses what is not iterable."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def to_specs(value: Any) -> Any:
    """Convert a list of specs to a tuple. The validator refuses a value that is not a list."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def check_strings(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate that the value is a tuple of strings."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise SpecError(attribute.name, value, "pass a list of strings")


def check_unicode(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate that a string, or each of a list or dict of strings, can be encoded: Modal receives it as UTF-8.

    Raises:
        SpecError: One contains a null character, or half of a surrogate pair, as Python decodes bytes that are not
            UTF-8.
    """
    texts = value.values() if isinstance(value, Mapping) else (value,) if isinstance(value, str) else value
    for text in texts if isinstance(texts, Iterable) else ():
        try:
            str(text).encode()
        except UnicodeEncodeError:
            raise SpecError(attribute.name, text, "pass valid Unicode") from None
        if "\0" in str(text):
            raise SpecError(attribute.name, text, "it contains a null character; remove it")


def to_env(value: Mapping[str, str | int | float | Path]) -> Mapping[str, str]:
    """Convert to environment variables, for a field named ``env``.

    Raises:
        SpecError: A name is not a variable's name, or a value is not a string, number or path, or is too large.
    """
    remedy = "pass a dict of variable names to strings, numbers or paths"
    if not isinstance(value, Mapping):
        raise SpecError("env", value, remedy)
    result: dict[str, str] = {}
    for key, item in value.items():
        name = f"env[{key!r}]"
        if not isinstance(key, str) or not re.fullmatch(_VARIABLE, key):
            raise SpecError(name, item, "a variable's name consists of letters, digits and underscores")
        if isinstance(item, bool) or not isinstance(item, str | int | float | Path):
            raise SpecError(name, item, remedy)
        check_value("env", key, str(item))
        result[key] = str(item)
    return result


def check_variable_names(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a tuple of names of variables. An error does not contain one, since it may be a value by mistake."""
    check_strings(instance, attribute, value)
    if isinstance(value, tuple) and not all(re.fullmatch(_VARIABLE, name) for name in value):
        raise SpecError(attribute.name, "(not shown)", "pass the names of variables, not their values")


def check_name(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a name that Modal's servers and local folders accept."""
    if not isinstance(value, str) or not re.fullmatch(_NAME, value):
        raise SpecError(attribute.name, value, _NAME_REMEDY)


def check_optional_name(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a name, or None."""
    if value is not None:
        check_name(instance, attribute, value)


def check_tags(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a tuple of tags."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) and re.fullmatch(_TAG, item) for item in value):
        raise SpecError(attribute.name, value, f"pass a list of tags of {_TAG_RULE}", shell_remedy=f"use {_TAG_RULE}")


def check_flag(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate True or False."""
    if not isinstance(value, bool):
        raise SpecError(attribute.name, value, "pass True or False")


def _or_none(name: str, value: object, remedy: str) -> SpecError:
    """Return the error about a value that could also be None, which is ``none`` on the command line and in files."""
    return SpecError(name, value, f"{remedy}, or None", shell_remedy=f"{remedy}, or none")


def at_least(minimum: float, maximum: float = math.inf, *, is_whole: bool = False) -> Validator:
    """Return a validator that accepts None, or a number in a range."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is None:
            return
        is_other = isinstance(value, bool) or (is_whole and not isinstance(value, int))
        if is_other or not isinstance(value, int | float) or not minimum <= value <= maximum:
            limits = f"of at least {minimum:,}" if maximum == math.inf else f"from {minimum:,} to {maximum:,}"
            raise _or_none(attribute.name, value, f"pass a {'whole ' if is_whole else ''}number {limits}")

    return check


def check_optional_text(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate None, or a text without spaces and control characters, such as the name of a region."""
    if value is not None and (not isinstance(value, str) or not re.fullmatch(_TAG, value)):
        remedy = "pass a name without spaces, commas and control characters"
        raise SpecError(attribute.name, value, f"{remedy}, or None", shell_remedy=remedy)


def above_zero(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate that a value is None, or a finite number above 0."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _or_none(attribute.name, value, "pass a number above 0")


def one_of(*names: str) -> Validator:
    """Return a validator that accepts None, or one of some strings."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is not None and value not in names:
            raise SpecError(attribute.name, value, f"pass {' or '.join(map(repr, names))}, or None")

    return check


def check_whole_number(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Validate that a value is a whole number in a range.

    Raises:
        SpecError: It is not an int, is a bool, or is outside of the range.

    Example:
        >>> check_whole_number("nodes", 2, minimum=1)
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise SpecError(name, value, f"pass a whole number {limits}")


def whole_number(minimum: int, maximum: int | None = None) -> Validator:
    """Return a validator that accepts whole numbers in a range."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        check_whole_number(attribute.name, value, minimum, maximum)

    return check


def instance_of(kind: type, *, optional: bool = False) -> Validator:
    """Return a validator that accepts instances of a class, and None if ``optional``."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind) and not (optional and value is None):
            raise SpecError(attribute.name, value, f"pass a {kind.__name__}" + (", or None" if optional else ""))

    return check


def tuple_of(*kinds: type) -> Validator:
    """Return a validator that accepts tuples of instances of some classes."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, kinds) for item in value):
            names = " and ".join(kind.__name__ for kind in kinds)
            raise SpecError(attribute.name, value, f"pass a list of {names}")

    return check
