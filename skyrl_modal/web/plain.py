"""Text of runs for the page: without control characters. The page inserts it as text, never as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from skyrl_modal.skyrl.failures.log_line import without_escapes
from skyrl_modal.views.text import escape_controls


def plain(value: Any) -> Any:
    r"""Return data for ``json.dumps``, in which each text has escapes instead of control characters.

    Example:
        >>> plain({"a": ("\x1b[31mred\x07", 1)})
        {'a': ['red\\x07', 1]}
    """
    kind = type(value)
    if value is None or kind is int or kind is bool:
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return escape_controls(without_escapes(value), multiline=True)
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
