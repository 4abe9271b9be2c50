"""Amounts of money as text."""

from __future__ import annotations

#: The smallest amount that is written with digits.
_MINIMUM = 0.0001


def format_money(dollars: float | None) -> str:
    """Return an amount in US dollars with a sensible number of digits; "unknown" for None.

    Example:
        >>> [format_money(value) for value in (12.4, 1234.5, 0.25, 0.0031, 0.00000002, 0, None)]
        ['$12.40', '$1,234.50', '$0.25', '$0.0031', '<$0.0001', '$0', 'unknown']
    """
    if dollars is None:
        return "unknown"
    if dollars == 0:
        return "$0"
    if dollars < 0:
        return f"-{format_money(-dollars)}"
    if dollars < _MINIMUM:
        return f"<${_MINIMUM}"
    if dollars >= 0.1:
        return f"${dollars:,.2f}"
    # Two significant digits, without an exponent.
    return f"${dollars:.{3 if dollars >= 0.01 else 4 if dollars >= 0.001 else 5}f}"
