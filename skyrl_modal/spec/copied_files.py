"""The files that steps of an image copy: whether they exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.image_steps import CopyFiles, ImageStep, UvSync

#: Returns whether a path in the checkout is a mounted file, or a folder with mounted files.
Exists = Callable[[str], bool]
#: What ``UvSync`` reads.
_PROJECT_FILES = ("pyproject.toml", "uv.lock")


def check_copied_files(step: ImageStep, exists: Exists | None) -> None:
    """Check that the files exist which a step copies into the image.

    Args:
        step: The step.
        exists: Returns whether the checkout has a path; None if no checkout is mounted.

    Raises:
        SpecError: One does not exist.

    Example:
        >>> check_copied_files(CopyFiles("skyrl-gym", "/opt/skyrl-gym"), lambda path: path == "skyrl-gym")
    """
    if isinstance(step, CopyFiles):
        _check_source(step.source, exists)
    elif isinstance(step, UvSync):
        _check_project(step, exists)


def _check_source(source: str, exists: Exists | None) -> None:
    path = Path(source).expanduser()
    if path.is_absolute():
        if not path.is_file() and not path.is_dir():
            raise SpecError("source", source, "there is no such file or folder on this machine")
    elif exists is None:
        raise SpecError("source", source, "it is a path in the checkout, and no checkout is mounted")
    elif not exists(path.as_posix()):
        remedy = "there is no such file or folder among the mounted files of the checkout"
        raise SpecError("source", source, remedy)


def _check_project(step: UvSync, exists: Exists | None) -> None:
    if exists is None:
        raise SpecError("steps", step, "UvSync reads uv.lock of the checkout, and no checkout is mounted")
    for name in _PROJECT_FILES:
        if not exists(name):
            remedy = f"UvSync needs {name}, which is not among the mounted files of the checkout"
            raise SpecError("steps", step, remedy + (". Create it with `uv lock`" if name == "uv.lock" else ""))
