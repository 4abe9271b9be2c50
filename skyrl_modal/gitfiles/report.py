"""Selections as text for a person."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

_SHOWN_FILES = 10


def format_size(size: int) -> str:
    """Return a size as text, in decimal units: 1 MB is 1,000,000 bytes.

    Example:
        >>> format_size(2_500_000), format_size(900), format_size(3_200_000_000)
        ('2.5 MB', '0.9 kB', '3.2 GB')
    """
    if size >= 1_000_000_000:
        return f"{size / 1_000_000_000:,.1f} GB"
    return f"{size / 1_000_000:,.1f} MB" if size >= 100_000 else f"{size / 1000:,.1f} kB"


def format_selection(
    root: Path, files: Sequence[str], sizes: Sequence[int], excluded: Mapping[str, str], warnings: Sequence[str]
) -> str:
    """Return a selection as text: the total, the largest files, the excluded paths by rule, the warnings.

    Args:
        root: The root of the selection.
        files: The selected files.
        sizes: Their sizes.
        excluded: The excluded paths with the reasons.
        warnings: The warnings.
    """
    lines = [f"{len(files):,} files, {format_size(sum(sizes))}, from {root}"]
    largest = largest_files(files, sizes)
    if largest:
        lines += ["", "largest"]
        lines += [f"{format_size(size):>12}  {_printable(path)}" for size, path in largest]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for path, reason in excluded.items():
        by_reason[reason].append(path)
    if by_reason:
        lines += ["", "excluded, by rule"]
        for reason, paths in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
            lines.append(f"{len(paths):>12,}  {reason}  ({', '.join(map(_printable, paths[:2]))}{more})")
    if warnings:
        lines += ["", "warnings", *(f"  - {_printable(warning)}" for warning in warnings)]
    return "\n".join(lines)


def largest_files(files: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, str]]:
    """Return size and path of the ten largest files, the largest first."""
    limit = min(heapq.nlargest(_SHOWN_FILES, sizes), default=0)
    candidates = [item for item in zip(sizes, files, strict=True) if item[0] >= limit]
    return heapq.nsmallest(_SHOWN_FILES, candidates, key=lambda item: (-item[0], item[1]))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode() if text.isprintable() else ascii(text)[1:-1]
