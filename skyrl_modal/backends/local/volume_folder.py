"""Where the volumes of the local backend are."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.user_folders import data_folder


def volume_folder(name: str) -> Path:
    """Return the folder of a volume."""
    return data_folder() / "volumes" / name
