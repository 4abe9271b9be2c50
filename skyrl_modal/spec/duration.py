"""Durations, converted to seconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from skyrl_modal.errors import SpecError

_PART = r"(?i)(\d+(?:\.\d+)?)\s*(d|h|m|s)"
_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_REMEDY = 'pass seconds above 0, a timedelta, or text such as "45s", "90m", "24h" or "1h30m"'


def parse_duration(value: float | str | timedelta, *, name: str = "timeout") -> float:
    """Convert a duration to seconds.

    Args:
        value: Seconds, a ``timedelta``, or text: one or several numbers with a unit d, h, m or s (``"1h30m"``).
        name: The field that an error names.

    Returns:
        Seconds, above 0.

    Raises:
        SpecError: The value is not a duration, or is not above 0.

    Example:
        >>> parse_duration("90m"), parse_duration("1h30m"), parse_duration(30)
        (5400.0, 5400.0, 30.0)
    """
    seconds: float | None = None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _parse_text(value.strip())
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(name, value, _REMEDY)
    return seconds


def _parse_text(text: str) -> float | None:
    """Return the seconds that a text states; None if it states no duration."""
    parts = re.findall(_PART, text)
    if parts and not re.sub(_PART, "", text).strip():
        return sum(float(number) * _UNIT_SECONDS[unit.lower()] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    return None


def format_duration(seconds: float) -> str:
    """Return a duration as ``parse_duration`` accepts it, with as few units as are exact.

    Example:
        >>> format_duration(3600), format_duration(5400), format_duration(0.5)
        ('1h', '1h30m', '0.5s')
    """
    text, rest = "", seconds
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _UNIT_SECONDS[unit])
        text += f"{count:.0f}{unit}" if count else ""
    return f"{text}{rest:.10g}s" if rest or not text else text
