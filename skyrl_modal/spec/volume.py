"""Persistent volumes."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.container_paths import mount_point
from skyrl_modal.spec.fields import check_flag, check_name
from skyrl_modal.spec.shown import Shown


def _to_mount_path(value: str | Path) -> str:
    return mount_point(value, "mount_path")


@frozen(kw_only=True)
class VolumeSpec(Shown):
    """A persistent volume. On the local backend it is a folder that is kept between runs.

    Attributes:
        name: Its name.
        mount_path: Its path in the container, where nothing is that the run needs.
        create_if_missing: Whether to create it on first use.
        read_only: Whether writes are refused.
        version: Modal's volume version, 1 or 2; None for Modal's default.

    Example:
        >>> VolumeSpec(name="ckpts", mount_path="/root/ckpts").read_only
        False
    """

    name: str = field(default="skyrl-data", validator=check_name)
    mount_path: str = field(default="/root/data", converter=_to_mount_path)
    create_if_missing: bool = field(default=True, validator=check_flag)
    read_only: bool = field(default=False, validator=check_flag)
    version: int | None = field(default=None)

    @version.validator
    def _check_version(self, attribute: Attribute[int | None], value: object) -> None:
        if value not in (None, 1, 2):
            remedy = "pass 1, 2, or None for Modal's default"
            raise SpecError("version", value, remedy, shell_remedy="write 1 or 2, or omit it for Modal's default")
