"""Paths on a volume, resolved as in the container: no symbolic link leads out of the volume."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from skyrl_modal.spec.fields import is_below

#: Links in one path, as on Linux (path_resolution(7)).
_MAX_LINKS = 40


class PathOutside(Exception):
    """A path leads out of the folder that it has to be in. The message states where it leads."""


def resolve_below(root: Path, path: str, aliases: Sequence[str] = ()) -> Path:
    """Return the real path of a path below a folder.

    Parts that do not exist are kept as they are.

    Args:
        root: The folder, without symbolic links.
        path: A path relative to it, with or without a leading ``/``.
        aliases: Absolute paths that the folder has elsewhere, such as a volume's mount path. A symbolic link to a path
            below one of them leads into the folder.

    Raises:
        PathOutside: The path leads out of the folder, or has too many links.

    Example:
        >>> resolve_below(Path("/srv/nowhere"), "ck/../x").as_posix()
        '/srv/nowhere/x'
    """
    todo = path.split("/")[::-1]
    current, followed = root, 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if current == root:
                raise PathOutside(f"{path!r} leads out of it")
            current = current.parent
            continue
        place = current / part
        try:
            text = os.readlink(place)
        except OSError:  # not a link, or it does not exist
            current = place
            continue
        followed += 1
        if followed > _MAX_LINKS:
            raise PathOutside(f"{path!r} contains more than {_MAX_LINKS} symbolic links, or a cycle")
        if text.startswith("/"):
            inside = path_below_alias(text, aliases)
            if inside is None:
                raise PathOutside(f"the symbolic link {part!r} leads to {text!r}")
            current, text = root, inside
        todo.extend(reversed(text.split("/")))
    return current


def path_below_alias(path: str, aliases: Sequence[str]) -> str | None:
    """Return an absolute path relative to the first of some folders that it is below; None if it is below none.

    Example:
        >>> path_below_alias("/root/data/ck/step_10", ["/root/data"])
        'ck/step_10'
    """
    normal = "/" + posixpath.normpath(path).lstrip("/")
    for alias in aliases:
        if is_below(normal, alias):
            return normal[len(alias) :].lstrip("/")
    return None
