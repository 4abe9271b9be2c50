"""The SkyRL checkout: its folder, its state in git, and the Ray version that it pins."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache, has_settled
from skyrl_modal.gitfiles.status import StatusQuery
from skyrl_modal.ray_requirement import RayRequirement, find_requirement

#: Size of a pyproject.toml.
MAX_PYPROJECT_BYTES = 4 << 20
#: Size of a uv.lock.
MAX_LOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
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


def inspect_checkout(root: Path, cache: ResultCache = NO_CACHE) -> Checkout:
    """Read the state of a checkout in git, and the Ray version in its pyproject.toml.

    Nothing is written to the checkout, and no program that the repository names is executed.

    Args:
        root: The checkout.
        cache: Where results are stored for the next call.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    with CheckoutInspection(root, cache) as inspection:
        return inspection.result()


class CheckoutInspection:
    """The inspection of a checkout, as ``inspect_checkout`` makes it. git runs in the background until ``result``.

    It can be used in a ``with`` statement, which kills git at the end.

    Args:
        root: The checkout.
        cache: Where results are stored for the next call.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.

    Attributes:
        root: The checkout.
        ray_requirement: What it requires of Ray; None if it requires nothing.
    """

    def __init__(self, root: Path, cache: ResultCache = NO_CACHE) -> None:
        self.root = root
        self._query: StatusQuery | None = None
        self._error: Exception | None = None
        try:
            self._query = StatusQuery(root, cache)
        except (GitCommandError, OSError) as error:
            self._error = error
        try:
            self.ray_requirement = read_ray_requirement(root, cache)
        except BaseException:
            self.close()
            raise

    def result(self) -> Checkout:
        """Wait for git and return the checkout. It can be called once."""
        status = None
        try:
            if self._query is not None:
                status = self._query.result()
        except (GitCommandError, OSError) as error:
            self._error = error
        if self._error is not None:
            warning = f"the commit of {self.root} is not recorded: {self._error}"
            return Checkout(self.root, warning=warning, ray_requirement=self.ray_requirement)
        if status is None:
            return Checkout(self.root, ray_requirement=self.ray_requirement)
        return Checkout(self.root, status.commit, status.changed_files, ray_requirement=self.ray_requirement)

    def close(self) -> None:
        """Kill git if it has not ended."""
        if self._query is not None:
            self._query.close()

    def __enter__(self) -> CheckoutInspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pinned_ray_version(root: Path) -> str | None:
    """Return the version of Ray that a checkout pins, or that its uv.lock contains; None if there is no single one.

    Args:
        root: The checkout.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    requirement = read_ray_requirement(root)
    return None if requirement is None else requirement.version


def read_ray_requirement(root: Path, cache: ResultCache = NO_CACHE) -> RayRequirement | None:
    """Return what a checkout requires of Ray; None if it requires nothing.

    Args:
        root: The checkout. If its root has no pyproject.toml, the one of the older layout's skyrl-train/ is read.
        cache: Where the result is stored until one of the files changes.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    for folder in (root, root / "skyrl-train"):
        requirement = _read_requirement(folder, cache)
        if requirement is not None:
            return requirement
    return None


def _read_requirement(folder: Path, cache: ResultCache) -> RayRequirement | None:
    project, lock = folder / "pyproject.toml", folder / "uv.lock"
    # The status is read before the content, so that a change in between leads to another status at the next call.
    now, states = time.time_ns(), [_status_or_none(path) for path in (project, lock)]
    facts = [None if state is None else _facts(state) for state in states]
    name = f"{_REQUIREMENT_FORMAT} of {folder}"
    stored = None if states[0] is None else cache.load(name)
    if stored is not None:
        known, version, specifiers = json.loads(stored)
        if known == facts:
            return RayRequirement(version, tuple(specifiers)) if version or specifiers else None
    table = _read_project(project)
    requirement = None if table is None else find_requirement(table, _read_lock(lock))
    if states[0] is not None and all(state is None or has_settled(state, now) for state in states):
        values = (None, ()) if requirement is None else (requirement.version, requirement.specifiers)
        cache.save(name, json.dumps([facts, *values]).encode())
    return requirement


#: The name of stored requirements. To be changed with the rules of ``find_requirement``.
_REQUIREMENT_FORMAT = "Ray requirement 1"


def _status_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _facts(status: os.stat_result) -> list[int]:
    """Return the part of a status that changes with the content of a file, or with the permission to read it."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode]


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
    import tomllib  # imported here, since the requirement of most checkouts is stored

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
