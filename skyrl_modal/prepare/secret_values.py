"""Values of secrets, read from the caller's environment or from a .env file."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_modal.checkout import Checkout
from skyrl_modal.errors import SpecError
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.stored import encode_spec
from skyrl_modal.spec.variables import check_total, check_value

#: Size of a .env file.
MAX_ENV_FILE_BYTES = 1 << 20

#: A value of at least this length is refused in a command or a variable. A shorter one may be there by accident.
MIN_REFUSED_LENGTH = 8

#: Fields in which a value is not searched for: they have names of secrets, and folders of the caller's machine.
_NOT_SEARCHED = ("secrets", "checkout", "local_path")


def secret_folders(checkout: Checkout | None) -> list[Path]:
    """Return the folders whose .env file is read, in order of precedence: the working directory and the checkout."""
    folders = [] if checkout is None else [checkout.root]
    with contextlib.suppress(FileNotFoundError):  # the working directory does not exist any more
        folders.insert(0, Path.cwd())
    return folders


def read_secret_values(
    names: Sequence[str], folders: Sequence[Path], *, optional: Collection[str] = ()
) -> dict[str, str]:
    """Read the values of secrets.

    A value in a .env file may contain ``${NAME}``, which python-dotenv replaces by the value of a variable of the
    environment or of an earlier line of the file, or by nothing. No command is executed.

    Args:
        names: Names of variables.
        folders: Folders whose .env file is read, in order of precedence after the environment.
        optional: Those of the names that may be missing.

    Returns:
        The value of each name that was found.

    Raises:
        SpecError: A variable is not defined, or a .env file cannot be read; or a value is too large for a variable. The
            message names the searched places, and contains no value.
    """
    values: dict[str, str] = {}
    size = 0
    places = [folder / ".env" for folder in dict.fromkeys(folders)] if names else []
    # A folder of this name is a virtual environment.
    files = [place for place in places if place.exists() and not place.is_dir()]
    for name in names:
        value = os.environ.get(name)
        for file in files:
            if value is None:
                value = _read_env_file(file, name)
        if value is not None:
            size += check_value("secrets", name, value)
            values[name] = value
        elif name not in optional:
            searched = ", ".join(["the environment", *map(str, files)])
            raise SpecError("secrets", name, f"{searched} define no such variable; export it, or add it to a .env file")
    check_total("secrets", size)
    return values


def _read_env_file(file: Path, name: str) -> str | None:
    from dotenv import dotenv_values  # imported here, since few runs name secrets

    try:
        text = read_regular_file(file, max_bytes=MAX_ENV_FILE_BYTES).decode()
        return dotenv_values(stream=io.StringIO(text, newline=None), interpolate=True).get(name)
    except (OSError, UnicodeDecodeError) as error:
        # The text of a UnicodeDecodeError contains bytes of the file, and this file contains secrets.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError("secrets", name, f"{file} cannot be read: {reason}") from None


def find_repeated_values(spec: RunSpec, command: str, values: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for each short value of a secret that is also in a field of the run.

    Args:
        spec: What the user declared.
        command: The run's command.
        values: The values of secrets, by the names of their variables.

    Raises:
        SpecError: A value of at least ``MIN_REFUSED_LENGTH`` characters is in a field, from which it would be copied
            to records, logs and arguments of programs. The error does not contain it.
    """
    texts = [("command", command)]
    for field, item in encode_spec(spec, checkout=None).items():
        if field not in _NOT_SEARCHED:
            texts += _texts_of(field, item)
    for name, value in values.items():
        forms = {form for form in (value, value.strip()) if form}
        fields = list(dict.fromkeys(field for field, text in texts if any(form in text for form in forms)))
        if fields and len(value.strip()) >= MIN_REFUSED_LENGTH:
            raise SpecError(
                fields[0],
                "(not shown)",
                f"it contains the value of the secret {name}, and would be part of the run's records. The command has "
                f"the variable ${name}, since secrets= names it: use that, and remove the value",
            )
        if fields:
            yield Finding(
                code="secret-value-repeated",
                severity=Severity.WARNING,
                message=f"the value of the secret {name} is also in {', '.join(fields)}, which records contain",
                remedy=f"Use ${name} in the command instead, if it is not there by accident.",
            )


def _texts_of(field: str, item: Any) -> Iterator[tuple[str, str]]:
    """Yield each string in a field with the name of the field."""
    if isinstance(item, str):
        yield field, item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            if key not in _NOT_SEARCHED:
                is_variable = field.rpartition(".")[2] == "env"
                yield from _texts_of(f"{field}[{key!r}]" if is_variable else f"{field}.{key}", value)
    elif isinstance(item, list):
        for value in item:
            yield from _texts_of(field, value)
