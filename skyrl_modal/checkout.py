"""The SkyRL checkout: its folder, its state in git, and the Ray version that it pins."""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from attrs import frozen

from skyrl_modal.errors import CheckoutNotFound, SpecError
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError
from skyrl_modal.gitfiles.status import read_status
from skyrl_modal.ray_requirement import RayRequirement, find_requirement

#: Size of a pyproject.toml.
MAX_PYPROJECT_BYTES = 4 << 20
#: Size of a uv.lock.
MAX_LOCK_BYTES = 16 << 20


@frozen
class Checkout:
    """A folder that contains a SkyRL source tree.

    Attributes:
        root: The folder that contains ``skyrl-gym/``.
        commit: The commit that is checked out; None if the folder is in no repository, or git could not be asked.
        changed_files: The number of files that differ from the commit, untracked ones included; None without a commit.
        warning: Why commit and changed files could not be read; empty if they could, or there is no repository.
        ray_requirement: What it requires of Ray; None if it requires nothing.
    """

    root: Path
    commit: str | None = None
    changed_files: int | None = None
    warning: str = ""
    ray_requirement: RayRequirement | None = None

    @property
    def ray_version(self) -> str | None:
        """The version of Ray that pyproject.toml pins, or uv.lock contains; None if there is no single one."""
        return None if self.ray_requirement is None else self.ray_requirement.version

    @property
    def description(self) -> str:
        """The state in git as a short text, such as ``commit 1a2b3c4d5, 2 files changed``."""
        if self.commit is None:
            return "commit unknown" if self.warning else "not a git checkout"
        if self.changed_files is None:
            return f"commit {self.commit[:9]}"
        noun = "file" if self.changed_files == 1 else "files"
        state = f"{self.changed_files} {noun} changed" if self.changed_files else "no changes"
        return f"commit {self.commit[:9]}, {state}"


def find_checkout(given: str | Path | None = None) -> Path:
    """Find the checkout: a folder, or the nearest one above it, that contains ``skyrl-gym/``.

    The search begins at the argument or at ``$SKYRL_REPO_ROOT``, if one of them is set; it is an error if neither that
    folder nor one above it is a checkout. Otherwise it begins at the working directory, then at the folder of the
    script that was started.

    Args:
        given: The checkout, or a folder in it; None to search.

    Returns:
        The root of the checkout, absolute.

    Raises:
        CheckoutNotFound: None of the folders is in a checkout.
    """
    places: list[tuple[str, Path]] = []
    variable = os.environ.get("SKYRL_REPO_ROOT")
    if given is not None:
        places.append(("checkout=", Path(given)))
    elif variable:
        places.append(("$SKYRL_REPO_ROOT", Path(variable)))
    else:
        with contextlib.suppress(FileNotFoundError):  # it does not exist any more
            places.append(("the working directory", Path.cwd()))
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        if script:
            places.append(("the calling script", Path(script).parent))
    absolute = [(why, place.expanduser().absolute()) for why, place in places]
    for _, place in absolute:
        for folder in (place, *place.parents):
            if (folder / "skyrl-gym").is_dir():
                return folder
    raise CheckoutNotFound(absolute)


def inspect_checkout(root: Path) -> Checkout:
    """Read the state of a checkout in git, and the Ray version in its pyproject.toml.

    Nothing is written, and no program that the repository names is executed.

    Args:
        root: The checkout.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    requirement = read_ray_requirement(root)
    try:
        status = read_status(root)
    except (GitCommandError, OSError) as error:
        return Checkout(root, warning=f"the commit of {root} is not recorded: {error}", ray_requirement=requirement)
    if status is None:
        return Checkout(root, ray_requirement=requirement)
    return Checkout(root, status.commit, status.changed_files, ray_requirement=requirement)


def pinned_ray_version(root: Path) -> str | None:
    """Return the version of Ray that a checkout pins, or that its uv.lock contains; None if there is no single one.

    Args:
        root: The checkout.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    requirement = read_ray_requirement(root)
    return None if requirement is None else requirement.version


def read_ray_requirement(root: Path) -> RayRequirement | None:
    """Return what a checkout requires of Ray; None if it requires nothing.

    Args:
        root: The checkout. If its root has no pyproject.toml, the one of the older layout's skyrl-train/ is read.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    for folder in (root, root / "skyrl-train"):
        project = _read_project(folder / "pyproject.toml")
        requirement = None if project is None else find_requirement(project, _read_lock(folder / "uv.lock"))
        if requirement is not None:
            return requirement
    return None


def required_uv_version(root: Path) -> str | None:
    """Return the versions of uv that the pyproject.toml of a checkout permits, such as ``>=0.8``; None for any.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    table: object = _read_project(root / "pyproject.toml")
    for name in ("tool", "uv", "required-version"):
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, str) else None


def _read_project(path: Path) -> dict[str, Any] | None:
    """Return the content of a pyproject.toml; None if there is none."""
    try:
        return tomllib.loads(read_regular_file(path, max_bytes=MAX_PYPROJECT_BYTES).decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise SpecError("checkout", str(path), f"this file cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError("checkout", str(path), f"this file is not valid TOML: {error}") from error


def _read_lock(path: Path) -> str | None:
    """Return the text of a uv.lock; None if it is absent, or cannot be read: the requirement then has no version."""
    try:
        return read_regular_file(path, max_bytes=MAX_LOCK_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
