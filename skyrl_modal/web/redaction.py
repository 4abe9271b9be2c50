"""Data of runs without secrets and without paths of this machine, to be sent to others."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from skyrl_modal.support_archive import make_mask
from skyrl_modal.user_folders import cache_folder, config_folder, data_folder, state_folder

#: A shorter path is not replaced: it would occur in other text.
_MIN_PATH_LENGTH = 4


class Redaction:
    """Removes secrets and paths.

    Args:
        names: Names of variables whose values are secret, further to those whose names look like it.
        folders: Folders of this machine, and what they are replaced by, further to those of the user and of Python.

    Example:
        >>> Redaction((), {"/data/me/SkyRL": "(checkout)"}).apply({"a": ["python /data/me/SkyRL/x.py", 1]})
        {'a': ['python (checkout)/x.py', 1]}
    """

    def __init__(self, names: Iterable[str], folders: Mapping[str, str]) -> None:
        self._mask = make_mask(names)
        known = {
            str(data_folder()): "(data)",
            str(state_folder()): "(state)",
            str(cache_folder()): "(cache)",
            str(config_folder()): "(config)",
            sys.prefix: "(python)",
            tempfile.gettempdir(): "(tmp)",
            os.getcwd(): "(working directory)",
        }
        found = {path: text for path, text in {**known, **folders}.items() if len(path) >= _MIN_PATH_LENGTH}
        self._folders = sorted(found.items(), key=lambda item: -len(item[0]))

    def text(self, text: str) -> str:
        """Return a text without secrets and paths. It has the same number of lines."""
        for path, replacement in self._folders:
            text = text.replace(path, replacement)
        return self._mask(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def apply(self, value: Any) -> Any:
        """Return data of ``json.loads`` without secrets and paths."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.apply(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.apply(item) for item in value]
        return value

    def lines(self, texts: Iterable[str]) -> list[str]:
        """Return lines without secrets, also those of several lines, such as private keys."""
        return self.text("\n".join(text.replace("\n", " ") for text in texts)).split("\n")
