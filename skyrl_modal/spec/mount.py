"""Local folders that are copied into the container."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from skyrl_modal.declaration import field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.container_paths import mount_point
from skyrl_modal.spec.fields import check_flag, check_strings, to_strings
from skyrl_modal.spec.shown import Shown


def _to_remote_path(value: str | Path) -> str:
    return mount_point(value, "remote_path")


def _to_local_folder(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise SpecError("local_path", value, "pass a folder, or None for the checkout")
    try:
        if b"\0" in os.fsencode(value):
            raise SpecError("local_path", value, "it contains a null character; remove it")
        return Path(value).expanduser().absolute()
    except UnicodeEncodeError:
        raise SpecError("local_path", value, "it contains a character that no path can contain") from None
    except (RuntimeError, OSError) as error:  # there is no home folder, or no working directory any more
        raise SpecError("local_path", str(value), f"it cannot be made absolute: {error}") from error


@frozen(kw_only=True)
class MountSpec(Shown):
    """A local folder that is copied into the container, except for files that git ignores.

    Attributes:
        local_path: The folder; None for the checkout.
        remote_path: Its path in the container, where nothing is that the run needs.
        exclude: Patterns of files to exclude, in the syntax of .gitignore. They take precedence over git's rules.
        include: Patterns of files to include. They take precedence over git's rules and over ``exclude``.
        skip_caches: Whether to exclude untracked environments and caches that no .gitignore names.

    Example:
        >>> MountSpec(exclude="*.ckpt").exclude
        ('*.ckpt',)
    """

    local_path: Path | None = field(default=None, converter=_to_local_folder)
    remote_path: str = field(default="/root/SkyRL", converter=_to_remote_path)
    exclude: Sequence[str] = field(default=(), converter=to_strings, validator=check_strings)
    include: Sequence[str] = field(default=(), converter=to_strings, validator=check_strings)
    skip_caches: bool = field(default=True, validator=check_flag)
