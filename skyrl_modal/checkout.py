"""The SkyRL checkout: its folder, its state in git, and the Ray version that it pins."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tomllib
from pathlib import Path

from attrs import frozen

from skyrl_modal.errors import CheckoutNotFound, SpecError
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError
from skyrl_modal.gitfiles.status import read_status

#: Size of a pyproject.toml.
MAX_PYPROJECT_BYTES = 4 << 20
#: A requirement that pins one version of Ray, such as ``ray[default]==2.51.1``.
_RAY_PIN = re.compile(r"ray(?:\[[^\]]*\])?\s*==\s*([0-9][0-9A-Za-z.]*)\s*(?:;.*)?")


@frozen
class Checkout:
    """A folder that contains a SkyRL source tree.

    Attributes:
        root: The folder that contains ``skyrl-gym/``.
        commit: The commit that is checked out; None if the folder is in no repository, or git could not be asked.
        changed_files: The number of files that differ from the commit, untracked ones included; None without a commit.
        ray_version: The version of Ray that its pyproject.toml pins; None if it pins none, or several.
        warning: Why commit and changed files could not be read; empty if they could, or there is no repository.
    """

    root: Path
    commit: str | None = None
    changed_files: int | None = None
    ray_version: str | None = None
    warning: str = ""

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
    ray_version = pinned_ray_version(root)
    try:
        status = read_status(root)
    except (GitCommandError, OSError) as error:
        warning = f"the commit of {root} is not recorded: {error}"
        return Checkout(root, ray_version=ray_version, warning=warning)
    if status is None:
        return Checkout(root, ray_version=ray_version)
    return Checkout(root, status.commit, status.changed_files, ray_version)


def pinned_ray_version(root: Path) -> str | None:
    """Return the version of Ray that a checkout pins with ``ray==``, or None if it pins none, or several.

    Args:
        root: The checkout. If its root has no pyproject.toml, the one of the older layout's skyrl-train/ is read.

    Raises:
        SpecError: The pyproject.toml is not valid TOML, or cannot be read.
    """
    for path in (root / "pyproject.toml", root / "skyrl-train" / "pyproject.toml"):
        try:
            text = read_regular_file(path, max_bytes=MAX_PYPROJECT_BYTES).decode()
            project = tomllib.loads(text).get("project", {})
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            raise SpecError("checkout", str(path), f"this file cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SpecError("checkout", str(path), f"this file is not valid TOML: {error}") from error
        requirements = _requirements(project)
        matches = (_RAY_PIN.fullmatch(item.strip()) for item in requirements if isinstance(item, str))
        versions = {match.group(1) for match in matches if match}
        if len(versions) == 1:
            return versions.pop()
    return None


def _requirements(project: object) -> list[object]:
    """Return the items of all lists of requirements in the table ``project``, which can have any content."""
    if not isinstance(project, dict):
        return []
    extras = project.get("optional-dependencies")
    lists = [project.get("dependencies"), *(extras.values() if isinstance(extras, dict) else ())]
    return [item for requirements in lists if isinstance(requirements, list) for item in requirements]
