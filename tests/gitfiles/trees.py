"""Helpers that create trees of files and search warnings."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.mount import Selection
from tests.gitfiles.repositories import git


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write files, and return their root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def commit(root: Path, message: str = "x") -> None:
    """Commit the staged files."""
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", message, cwd=root)


def has_warning(selection: Selection, *parts: str) -> bool:
    """Return whether one warning contains all of these parts."""
    return any(all(part in warning for part in parts) for warning in selection.warnings)
