"""Values of the secrets that a launcher names: from the caller's environment, else from a .env file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from skyrl_modal.errors import SpecError


def read_secrets(names: Sequence[str], folders: Sequence[Path]) -> dict[str, str]:
    """Look secrets up by name.

    Args:
        names: Variables wanted.
        folders: Where a .env may be; the first that has the name counts.

    Returns:
        A value for each name.

    Raises:
        SpecError: One is nowhere to be found; the error says where it was looked for, and no value of any.
    """
    if not names:
        return {}
    from dotenv import dotenv_values  # few runs name secrets, and it takes time to import

    files = [folder / ".env" for folder in dict.fromkeys(folders) if (folder / ".env").is_file()]
    found: dict[str, str] = {}
    for name in names:
        value = os.environ.get(name)
        for file in files:
            if value is None:
                value = dotenv_values(file, interpolate=False).get(name)
        if value is None:
            looked = ", ".join(["the environment", *map(str, files)])
            raise SpecError("secrets", name, f"no such variable in {looked}; export it, or write it into a .env")
        found[name] = value
    return found
