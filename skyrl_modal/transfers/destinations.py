"""The rule for the destinations of ``push`` and ``pull``: where a copy is."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError


@dataclass(frozen=True, slots=True)
class Source:
    """One file or folder that is copied.

    Attributes:
        path: Its path, without a slash at the end.
        name: The name of a copy in a folder.
        is_folder: Whether it is a folder.
        is_contents: Whether its content is copied, and not the folder itself: its path was passed with a slash at the
            end.
    """

    path: str
    name: str
    is_folder: bool
    is_contents: bool = False


def names_contents(path: str) -> bool:
    """Return whether a path stands for the content of a folder, or as a destination for a folder that receives copies.

    Example:
        >>> names_contents("data/"), names_contents("."), names_contents("data")
        (True, True, False)
    """
    return path.endswith("/") or posixpath.basename(path) in (".", "..")


def destination_paths(sources: Sequence[Source], destination: str, *, exists: bool, is_several: bool) -> list[str]:
    """Return the path of the copy of each source.

    The rule, of which the first line that applies counts:

    * The content of a folder (``data/``) is copied into the destination.
    * Of several sources, each is copied into the destination under its name.
    * A destination with a slash at the end is a folder that receives the copy under the name of the source.
    * An existing folder receives the copy under the name of the source, unless that is the folder's own name: then a
      folder is merged into it.
    * Otherwise the destination is the path of the copy.

    Args:
        sources: What is copied.
        destination: As the caller passed it.
        exists: Whether there is a folder at the destination.
        is_several: Whether the caller passed several sources, or a pattern.

    Raises:
        SpecError: Two sources would have the same copy, or a file was passed with a slash at the end.

    Example:
        >>> one = Source("runs/a", "a", is_folder=True)
        >>> destination_paths([one], "/x/", exists=False, is_several=False)
        ['/x/a']
        >>> destination_paths([one], "/x", exists=False, is_several=False)
        ['/x']
    """
    folder = destination.rstrip("/") or "/"
    receives = is_several or names_contents(destination)
    paths: dict[str, str] = {}
    copies = []
    for source in sources:
        if source.is_contents:
            if not source.is_folder:
                raise SpecError("path", f"{source.path}/", "it is a file. Omit the slash at the end")
            copies.append(folder)
            continue
        is_same_folder = source.is_folder and exists and os.path.basename(folder) == source.name
        is_inside = receives or (exists and not is_same_folder)
        path = posixpath.join(folder, source.name) if is_inside else folder
        if path in paths:
            message = f"its copy would replace that of {paths[path]}. Copy them one by one"
            raise SpecError("path", source.path, message)
        paths[path] = source.path
        copies.append(path)
    return copies
