"""The SkyRL checkout: where it is, what state git has it in, and the Ray version that it pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from attrs import frozen

from skyrl_modal.errors import CheckoutNotFound, SpecError

_RAY_PIN = re.compile(r"ray(?:\[[^\]]*\])?\s*==\s*([0-9][0-9A-Za-z.]*)\s*(?:;.*)?")


@frozen
class Checkout:
    """A folder that holds a SkyRL source tree.

    Attributes:
        root: The folder with ``skyrl-gym/`` in it.
        commit: The commit that is checked out; None where git does not know the folder.
        changed: Number of files that differ from the commit, untracked ones included; None where git was not asked.
        ray_version: The version of Ray that its pyproject.toml pins; None where it pins none, or several.
    """

    root: Path
    commit: str | None = None
    changed: int | None = None
    ray_version: str | None = None

    @property
    def description(self) -> str:
        """What is known from git in a few words, such as ``commit 1a2b3c4, 2 files changed``."""
        if self.commit is None:
            return "not a git checkout"
        if self.changed is None:
            return f"commit {self.commit[:9]}"
        noun = "file" if self.changed == 1 else "files"
        state = f"{self.changed} {noun} changed" if self.changed else "no changes"
        return f"commit {self.commit[:9]}, {state}"


def find_checkout(given: str | Path | None = None) -> Path:
    """Find the checkout: the folder itself or the nearest one above it that holds ``skyrl-gym/``.

    Looked at in this order: what is given, ``$SKYRL_REPO_ROOT``, the working directory, the script that was started.
    What is given, by argument or variable, must be right: a wrong one is an error and never a reason to look elsewhere.

    Args:
        given: The checkout, or a folder in it; None to search.

    Returns:
        The checkout's root, absolute.

    Raises:
        CheckoutNotFound: None of the places is in a checkout.
    """
    places: list[tuple[str, Path]] = []
    variable = os.environ.get("SKYRL_REPO_ROOT")
    if given is not None:
        places.append(("checkout=", Path(given)))
    elif variable:
        places.append(("$SKYRL_REPO_ROOT", Path(variable)))
    else:
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


def read_checkout(root: Path) -> Checkout:
    """Read what git and pyproject.toml say of a checkout. Nothing in it is written.

    Raises:
        SpecError: A pyproject.toml is there and is no TOML.
    """
    # `git status` is asked without its optional index refresh: the checkout is read, never written.
    # One call answers both questions.
    try:
        status = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain=v2", "--branch", "-z", "--", "."],
            check=False,
            capture_output=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return Checkout(root, ray_version=pinned_ray(root))
    if status.returncode != 0:
        return Checkout(root, ray_version=pinned_ray(root))
    commit, changed = None, 0
    entries = iter(status.stdout.decode("utf-8", "replace").split("\0"))
    for entry in entries:
        if entry.startswith("# branch.oid "):
            oid = entry.removeprefix("# branch.oid ")
            commit = None if oid == "(initial)" else oid
        elif entry.startswith("2 "):  # a rename: the old name follows as an entry of its own
            changed += 1
            next(entries, None)
        elif entry and not entry.startswith("#"):
            changed += 1
    return Checkout(root, commit=commit, changed=changed, ray_version=pinned_ray(root))


def pinned_ray(root: Path) -> str | None:
    """The version of Ray that the checkout pins with ``ray==``, None where there is no single one.

    Args:
        root: The checkout; the pyproject.toml of the older layout's skyrl-train/ is read where the root has none.

    Raises:
        SpecError: The pyproject.toml is no TOML.
    """
    for path in (root / "pyproject.toml", root / "skyrl-train" / "pyproject.toml"):
        if not path.is_file():
            continue
        try:
            project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError("checkout", str(path), f"this file cannot be read as TOML: {error}") from error
        requirements = list(project.get("dependencies", []))
        for group in project.get("optional-dependencies", {}).values():
            requirements.extend(group)
        matches = (_RAY_PIN.fullmatch(item.strip()) for item in requirements if isinstance(item, str))
        versions = {match.group(1) for match in matches if match}
        if len(versions) == 1:
            return versions.pop()
    return None
