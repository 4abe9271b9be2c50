"""The settings: what a configuration file, an option or an environment variable can set, from the declared fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from skyrl_modal.dataclass import MISSING, dataclass
from skyrl_modal.declaration import Attribute, fields
from skyrl_modal.spec.duration import format_duration
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.option import OPTION, Option
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.run_spec import FILES, RunSpec

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

#: Classes whose fields are settings of their own, in a table with the field's name.
_TABLES = (("image", ImageSpec), ("ray", RaySpec))

#: Settings of the checkout's mount.
_OF_CHECKOUT = (
    (
        "include",
        Option(
            help="Files to include although git ignores them, in the syntax of .gitignore.",
            kind="list",
            default="none",
            section=FILES,
            metavar="PATTERN",
        ),
    ),
    (
        "exclude",
        Option(
            help="Files of the checkout to exclude, in the syntax of .gitignore.",
            kind="list",
            default="none",
            section=FILES,
            metavar="PATTERN",
        ),
    ),
)

#: Further volumes of the launcher.
_OF_VOLUMES = (
    (
        "buckets",
        Option(
            help="A bucket of an object store, beside the volumes. KEY is a field of BucketSpec, such as secret.",
            kind="buckets",
            flag="--bucket",
            default="none",
            section=FILES,
        ),
    ),
)

#: Settings of commands, which the launcher does not have.
_OF_COMMANDS = (
    (
        "notify",
        Option(
            help="URL that receives the result at the end of a run, as JSON.",
            kind="url",
            flag=None,
            default="none",
            variable="SKYRL_MODAL_NOTIFY",
        ),
    ),
    (
        "confirm_above",
        Option(
            help="US dollars per hour above which the command line asks before it starts a run.",
            kind="number",
            flag=None,
            default="never",
            variable="SKYRL_MODAL_CONFIRM_ABOVE",
        ),
    ),
)
#: The settings that a file in a checkout, or above the working directory, may not have.
REFUSED_IN_PROJECTS = ("backend", "buckets", "confirm_above", "image.registry_secret", "notify", "secrets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        key: Its key in a configuration file, such as ``gpu`` or ``image.pip``.
        option: Its description.
        default: Its default; None if it has none, or if it is computed.
    """

    key: str
    option: Option
    default: object = None

    @property
    def flag(self) -> str | None:
        """Its option on the command line, such as ``--gpu``; None if it has none."""
        if self.option.flag is None:
            return None
        return self.option.flag or f"--{self.key.replace('_', '-')}"

    @property
    def own_default(self) -> str:
        """The default as a text, without the environment variable."""
        if self.option.default:
            return self.option.default
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        if self.option.kind == "duration" and isinstance(self.default, float):
            return format_duration(self.default)
        return str(self.default)

    @property
    def default_text(self) -> str:
        """The default as a text, for ``--help`` and the documentation."""
        variable = self.option.variable
        return f"${variable}, else {self.own_default}" if variable else self.own_default

    @property
    def is_optional(self) -> bool:
        """Whether ``none`` is one of its values."""
        kinds = ("choice", "duration", "number", "whole")
        return self.option.kind == "gpus" or (self.default is None and self.option.kind in kinds)


#: The settings of each class that was asked for.
_settings: dict[type, Mapping[str, Setting]] = {}


def all_settings(cls: type[RunSpec]) -> Mapping[str, Setting]:
    """Return the settings by their keys, in the order of the documentation.

    Args:
        cls: The class of the launcher.

    Example:
        >>> from skyrl_modal import Launcher
        >>> all_settings(Launcher)["timeout"].default_text, all_settings(Launcher)["gpu"].flag
        ('1h', '--gpu')
    """
    if cls in _settings:
        return _settings[cls]
    declared = {setting.key: setting for setting in _of_fields("", fields(cls))}
    first = ("backend", "gpu")
    found = {key: declared.pop(key) for key in first if key in declared}
    mounts = declared.pop("mounts")
    found |= declared
    for name, table in _TABLES:
        found |= {setting.key: setting for setting in _of_fields(f"{name}.", fields(table))}
    found["mounts"] = mounts
    _settings[cls] = found | {
        key: Setting(key=key, option=option) for key, option in (*_OF_VOLUMES, *_OF_CHECKOUT, *_OF_COMMANDS)
    }
    return _settings[cls]


def _of_fields(prefix: str, declared: Any) -> Iterator[Setting]:
    item: Attribute[Any]
    for item in declared:
        option = item.metadata.get(OPTION)
        if option is not None:
            default = None if item.default is MISSING else item.default
            yield Setting(key=f"{prefix}{item.name}", option=option, default=default)


def suggestion(name: str, names: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    """Return a question about the nearest name, with a space in front; empty if none is near.

    Example:
        >>> suggestion("retires", ["retries", "timeout"])
        ' Did you mean retries?'
    """
    from difflib import get_close_matches  # imported here, since it is needed for errors only

    near = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
