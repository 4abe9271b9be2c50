"""Reading of TOML tables of other projects, whose values can have any type."""

from __future__ import annotations

from typing import Any


def table(parent: object, name: str) -> dict[str, Any]:
    """Return a table in another one; an empty one if there is none, or if the value is no table.

    Example:
        >>> table({"tool": {"uv": {}}}, "tool"), table({"tool": 3}, "tool")
        ({'uv': {}}, {})
    """
    value = parent.get(name) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: object, *single: object) -> list[object]:
    """Return the items of a list; of anything else, what is passed for it.

    Example:
        >>> items(["a", "b"]), items("a"), items("a", "a")
        (['a', 'b'], [], ['a'])
    """
    return value if isinstance(value, list) else list(single)
