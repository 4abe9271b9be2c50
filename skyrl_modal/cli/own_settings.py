"""Settings of commands that only the environment and the user's own file may set, since a checkout is not trusted.

A command reads the user's file once: with the configuration of its launcher, if it has one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skyrl_modal.config.resolve import Configuration

#: The keys of a command's context with its configuration, and with the settings of the user's own file.
_CONFIGURATION = "skyrl_modal.configuration"
_OWN = "skyrl_modal.own_settings"


def keep_configuration(made: Configuration) -> None:
    """Keep the configuration of the command that is executed, for ``kept_configuration``."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_CONFIGURATION] = made


def kept_configuration(context: click.Context | None = None) -> Configuration | None:
    """Return the configuration of the launcher of a command; None if there is none yet.

    Args:
        context: The context of the command; None for the one that is executed.
    """
    context = context or click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_CONFIGURATION)


def read_own_setting(key: str, variable: str) -> tuple[Any, str]:
    """Return the value of a setting, and where it was set; None and an empty text if it is not set.

    Args:
        key: Its key in the user's own file.
        variable: The environment variable, which has precedence.

    Raises:
        SpecError: The file is not valid.
    """
    made = kept_configuration()
    if made is not None:
        item = made.values.get(key)
        return (None, "") if item is None else (item.value, item.source)
    value = os.environ.get(variable)
    if value:
        return value, f"${variable}"
    title, values = _own_settings()
    return values.get(key), f"{title}: {key}" if key in values else ""


def _own_settings() -> tuple[str, Mapping[str, Any]]:
    """Return the title of the user's own file and its settings."""
    context = click.get_current_context(silent=True)
    if context is None:
        return _read_own_file()
    if _OWN not in context.meta:
        context.meta[_OWN] = _read_own_file()
    found: tuple[str, Mapping[str, Any]] = context.meta[_OWN]
    return found


def _read_own_file() -> tuple[str, Mapping[str, Any]]:
    from skyrl_modal.config.files import read_user_file, user_config_path
    from skyrl_modal.errors import StorageError

    try:
        if not user_config_path().exists():
            return "", {}
    except (StorageError, OSError):  # a user without a home folder has no file
        return "", {}
    from skyrl_modal.config.settings import all_settings
    from skyrl_modal.launcher import Launcher

    file, known = read_user_file(), all_settings(Launcher)
    if file is None:
        return "", {}
    file.check_names(known)
    return file.title, file.values(known)
