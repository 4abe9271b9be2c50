"""Patterns for several files, as in a shell: ``*``, ``?``, ``[...]``, and ``**`` for any number of folders.

A name that begins with a dot matches only a part of a pattern that begins with one: ``*`` does not match the records of
runs in ``.skyrl_modal``. A pattern that is the path of an existing file is that file.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from skyrl_modal.errors import PathNotFound
from skyrl_modal.protocol.state import VolumeEntryKind

if TYPE_CHECKING:
    from skyrl_modal.backends import Backend
    from skyrl_modal.spec.bucket import AnyVolume

_ANY_FOLDERS = "**"
#: Characters that make a path a pattern.
_MAGIC = frozenset("*?[")


def is_pattern(path: str) -> bool:
    """Return whether a path has a character of a pattern.

    Example:
        >>> is_pattern("/root/data/ckpts/global_step_*"), is_pattern("/root/data")
        (True, False)
    """
    return not _MAGIC.isdisjoint(path)


def matches(path: str, pattern: str) -> bool:
    """Return whether a relative path matches a pattern.

    Example:
        >>> matches("a/b/c.pt", "**/*.pt"), matches(".hidden/c.pt", "**/*.pt"), matches("a/b", "*")
        (True, False, False)
    """
    return _match(path.split("/"), pattern.split("/"))


def _match(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == _ANY_FOLDERS:
        if _match(names, parts[1:]):
            return True
        return bool(names) and not names[0].startswith(".") and _match(names[1:], parts)
    return bool(names) and _match_name(names[0], parts[0]) and _match(names[1:], parts[1:])


def _match_name(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, part)


def expand_on_volume(backend: Backend, volume: AnyVolume, path: str) -> list[str]:
    """Return the paths on a volume that a path or pattern stands for, sorted, without those in a folder that matches.

    Raises:
        PathNotFound: Nothing matches the pattern. A path without a pattern is returned as it is.
    """
    if not is_pattern(path) or backend.kind(volume, path) is not None:
        return [path]
    parts = path.split("/")
    fixed = next(index for index, part in enumerate(parts) if is_pattern(part))
    base, rest = "/".join(parts[:fixed]), parts[fixed:]
    try:
        if _ANY_FOLDERS in rest:
            inside = (posixpath.relpath(entry.path, base or ".") for entry in backend.walk(volume, base))
            found = [posixpath.join(base, name) for name in inside if _match(name.split("/"), rest)]
        else:
            found = _expand_levels(backend, volume, base, rest)
    except FileNotFoundError:
        found = []
    if not found:
        pattern = posixpath.join(volume.mount_path, path)
        raise PathNotFound(f"nothing matches {pattern} (volume {volume.name}); names that begin with a dot need a dot")
    return outermost(found)


def _expand_levels(backend: Backend, volume: AnyVolume, base: str, parts: Sequence[str]) -> list[str]:
    """Return the matching paths, level by level: only the folders that match so far are listed."""
    found = [base]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        folders, found = found, []
        for folder in folders:
            for entry in backend.ls(volume, folder):
                name = posixpath.basename(entry.path)
                is_usable = is_last or entry.type is VolumeEntryKind.FOLDER
                if name not in ("", ".", "..") and is_usable and _match_name(name, part):
                    found.append(posixpath.join(folder, name))
    return found


def expand_local(path: str) -> list[str]:
    """Return the paths on this machine that a path or pattern stands for, sorted.

    Raises:
        PathNotFound: Nothing matches the pattern. A path without a pattern is returned as it is.
    """
    if not is_pattern(path) or os.path.lexists(path):
        return [path]
    # With ** at the end, the folder before it matches too. It has a slash at its end.
    found = [each for each in glob.glob(path, recursive=True) if path.endswith("/") or not each.endswith("/")]
    if not found:
        raise PathNotFound(f"nothing on this machine matches {path}")
    return outermost(found)


def outermost(paths: Iterable[str]) -> list[str]:
    """Return paths without those that are in another one, sorted.

    Example:
        >>> outermost(["a/b", "a", "c", "ab"])
        ['a', 'ab', 'c']
    """
    found: set[str] = set()
    for path in sorted(paths, key=len):
        if found.isdisjoint(_parents(path)):
            found.add(path)
    return sorted(found)


def _parents(path: str) -> Iterable[str]:
    while (parent := os.path.dirname(path.rstrip("/"))) != path and parent:
        yield parent
        path = parent
