"""The values of ``key=value`` arguments, as OmegaConf reads them."""

from __future__ import annotations

import ast
import re

_INTEGER = re.compile(r"[+-]?\d+(?:_\d+)*")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


def parse_value(text: str) -> object:
    """Return the value of an argument.

    Example:
        >>> parse_value("1e-6"), parse_value("null"), parse_value("['a', 'b']"), parse_value("wandb")
        (1e-06, None, ['a', 'b'], 'wandb')
    """
    word = text.strip()
    if word.lower() in _CONSTANTS:
        return _CONSTANTS[word.lower()]
    if _INTEGER.fullmatch(word):
        return int(word) if len(word) < 100 else word
    if _FLOAT.fullmatch(word):
        return float(word)
    if word[:1] == "[" and word[-1:] == "]":
        return _parse_list(word)
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    return word


def _parse_list(word: str) -> list[object]:
    try:
        value = ast.literal_eval(word)
        if isinstance(value, list):
            return value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass  # items without quotes
    return [parse_value(item) for item in word[1:-1].split(",") if item.strip()]
