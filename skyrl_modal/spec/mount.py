"""Local folders that are copied into the container."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import check_texts, container_path, to_tuple


def _remote_path(value: str | Path) -> str:
    return container_path(value, "remote_path")


def _local_folder(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise SpecError("local_path", value, "give a folder, or None for the checkout")
    return Path(value).expanduser().absolute()


@frozen(kw_only=True)
class MountSpec:
    """A local folder that goes into the container, without what .gitignore names.

    Attributes:
        local_path: The folder; None for the checkout.
        remote_path: Where the container has it.
        exclude: Patterns in .gitignore's language for files that stay behind; they win over git's rules.
        include: Patterns for files that go all the same; they win over git's rules and over ``exclude``.
        skip_caches: Whether untracked environments and caches stay behind also where no .gitignore names them.

    Example:
        >>> MountSpec(exclude="*.ckpt").exclude
        ('*.ckpt',)
    """

    local_path: Path | None = field(default=None, converter=_local_folder)
    remote_path: str = field(default="/root/SkyRL", converter=_remote_path)
    exclude: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    include: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    skip_caches: bool = True
