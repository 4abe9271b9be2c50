"""Settings of commands that only the environment and the user's own file may set, since a checkout is not trusted."""

from __future__ import annotations

import os


def read_own_setting(key: str, variable: str) -> tuple[object, str]:
    """Return the value of a setting, and where it was set; None and an empty text if it is not set.

    Args:
        key: Its key in the user's own file.
        variable: The environment variable, which has precedence.

    Raises:
        SpecError: The file is not valid.
    """
    value = os.environ.get(variable)
    return (value, f"${variable}") if value else _read_own_file(key)


def _read_own_file(key: str) -> tuple[object, str]:
    from skyrl_modal.config.files import read_user_file, user_config_path
    from skyrl_modal.errors import StorageError

    try:
        if not user_config_path().exists():
            return None, ""
    except (StorageError, OSError):  # a user without a home folder has no file
        return None, ""
    from skyrl_modal.config.settings import all_settings
    from skyrl_modal.launcher import Launcher

    file, known = read_user_file(), all_settings(Launcher)
    if file is None:
        return None, ""
    file.check_names(known)
    return file.values(known).get(key), f"{file.title}: {key}"
