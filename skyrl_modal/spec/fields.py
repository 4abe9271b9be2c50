"""Converters and validators that several specs share."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import Attribute

from skyrl_modal.errors import SpecError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def container_path(value: object, name: str) -> str:
    """Check and normalise an absolute path in the container.

    Raises:
        SpecError: It is relative, is ``/``, or has a ``..`` in it.

    Example:
        >>> container_path("/root/data/", "mount_path")
        '/root/data'
    """
    remedy = 'give an absolute path in the container below /, without "..", for example "/root/data"'
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise SpecError(name, value, remedy)
    normal = "/" + posixpath.normpath(text).lstrip("/")
    if normal == "/":
        raise SpecError(name, value, remedy)
    return normal


def to_tuple(value: str | Iterable[str]) -> Sequence[str]:
    """Convert to a tuple; one string is a tuple of one. What cannot be converted is left to the validator."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def check_texts(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is a tuple of strings."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise SpecError(attribute.name, value, "give a list of strings")


def to_env(value: Mapping[str, str | int | float | Path]) -> Mapping[str, str]:
    """Convert to the variables of an environment, for a field named ``env``.

    Raises:
        SpecError: A name is no variable's name, or a value is neither text, number nor path.
    """
    remedy = "give a dict of variable names to strings, numbers or paths"
    if not isinstance(value, Mapping):
        raise SpecError("env", value, remedy)
    result: dict[str, str] = {}
    for key, item in value.items():
        name = f"env[{key!r}]"
        if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
            raise SpecError(name, item, "a variable's name is letters, digits and underscores")
        if isinstance(item, bool) or not isinstance(item, str | int | float | Path) or "\0" in str(item):
            raise SpecError(name, item, remedy)
        result[key] = str(item)
    return result


def check_name(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Check a name that Modal, or a folder here, gets."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SpecError(attribute.name, value, "use 1 to 64 letters, digits, dots, dashes and underscores")


def at_least(minimum: float) -> Callable[[Any, Attribute[Any], Any], None]:
    """A validator: None, or a number of at least ``minimum``."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
            raise SpecError(attribute.name, value, f"give a number of at least {minimum:g}, or None")

    return check
