"""Durations as seconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from skyrl_modal.errors import SpecError

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)", re.IGNORECASE)


_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(value: float | str | timedelta, *, name: str = "timeout") -> float:
    """Turn a duration into seconds.

    Args:
        value: Seconds, a ``timedelta``, or text: a number with d, h, m or s, also several (``"1h30m"``).
        name: The field that an error names.

    Returns:
        Seconds, above 0.

    Raises:
        SpecError: The value cannot be read, or is not above 0.

    Example:
        >>> parse_duration("90m"), parse_duration("1h30m"), parse_duration(30)
        (5400.0, 5400.0, 30.0)
    """
    remedy = 'give seconds above 0, a timedelta, or text such as "45s", "90m", "24h" or "1h30m"'
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool):
        raise SpecError(name, value, remedy)
    elif isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        parts = _DURATION_PART.findall(text)
        if parts and _DURATION_PART.sub("", text).strip() == "":
            seconds = sum(float(number) * _UNIT_SECONDS[unit.lower()] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        else:
            raise SpecError(name, value, remedy)
    else:
        raise SpecError(name, value, remedy)
    if not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(name, value, remedy)
    return seconds
