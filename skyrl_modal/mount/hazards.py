"""What may be wrong with a selection, said before it costs anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyrl_modal.mount.walk import Folder


def find(
    root: Path,
    files: Sequence[str],
    status: Sequence[os.stat_result | None],
    excluded: Mapping[str, str],
    tops: Sequence[Folder],
) -> list[str]:
    """The warnings about a selection."""
    return []


def table(
    root: Path, files: Sequence[str], sizes: Sequence[int], excluded: Mapping[str, str], warnings: Sequence[str]
) -> str:
    """A selection as a person reads it."""
    return f"{root}: {len(files)} files, {sum(sizes)} bytes, {len(excluded)} left out"
