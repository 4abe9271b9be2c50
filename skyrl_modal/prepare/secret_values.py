"""Values of secrets, read from the caller's environment or from a .env file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from skyrl_modal.errors import SpecError


def read_secret_values(names: Sequence[str], folders: Sequence[Path]) -> dict[str, str]:
    """Read the values of secrets.

    Args:
        names: Names of variables.
        folders: Folders whose .env file is read, in order of precedence after the environment.

    Returns:
        The value of each name.

    Raises:
        SpecError: A variable is not defined, or a .env file cannot be read. The message names the searched places, and
            contains no value.
    """
    if not names:
        return {}
    files = [folder / ".env" for folder in dict.fromkeys(folders) if (folder / ".env").is_file()]
    values: dict[str, str] = {}
    for name in names:
        value = os.environ.get(name)
        for file in files:
            if value is None:
                value = _read_env_file(file, name)
        if value is None:
            searched = ", ".join(["the environment", *map(str, files)])
            raise SpecError("secrets", name, f"{searched} define no such variable; export it, or add it to a .env file")
        values[name] = value
    return values


def _read_env_file(file: Path, name: str) -> str | None:
    from dotenv import dotenv_values  # imported here, since few runs name secrets

    try:
        return dotenv_values(file, interpolate=False).get(name)
    except (OSError, UnicodeDecodeError) as error:
        # The text of a UnicodeDecodeError contains bytes of the file, and this file contains secrets.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError("secrets", name, f"{file} cannot be read: {reason}") from None
