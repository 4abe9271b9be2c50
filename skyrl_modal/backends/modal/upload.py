"""What Modal's upload of a folder changes: symbolic links, and names that are not valid UTF-8."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from pathlib import Path


def find_links_and_undecodable_names(root: Path) -> tuple[dict[str, str], list[str]]:
    """Find the entries of a folder that ``Image.add_local_dir`` does not upload unchanged (modal 1.6.4).

    It uploads the target of a link to a file in place of the link, and drops links to folders and broken links. The
    container creates the links again. Names have to be text.

    Args:
        root: The folder.

    Returns:
        The links with their targets, and the paths that cannot be uploaded; relative to the folder.
    """
    links, undecodable = {}, []
    for folder, subfolders, files in os.walk(root):
        relative_folder = os.path.relpath(folder, root)
        for name in [*files, *subfolders]:
            path = os.path.normpath(os.path.join(relative_folder, name))
            is_link = os.path.islink(os.path.join(folder, name))
            target = os.readlink(os.path.join(folder, name)) if is_link else ""
            if not (_is_text(path) and _is_text(target)):
                undecodable.append(path)
            elif is_link:
                links[path] = target
    return links, sorted(undecodable)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 became surrogates (PEP 383)
        return False
    return True


def ignore_paths(paths: Set[str]) -> Callable[[Path], bool]:
    """Return a function for the parameter ``ignore`` of ``Image.add_local_dir`` that excludes these paths."""
    return lambda path: path.as_posix() in paths
