"""What the rules know about a run and about a start."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence

from attrs import field, frozen

from skyrl_modal.skyrl.config_schema import UNKNOWN, ConfigSchema
from skyrl_modal.skyrl.config_values import parse_value
from skyrl_modal.skyrl.resolution.records import EntrypointKind, Start
from skyrl_modal.spec.fields import is_below

#: SkyRL's default folder of infra logs, which a run keeps.
KEPT_LOG_FOLDER = "/tmp/skyrl-logs"


def _nothing_known(path: str) -> None:
    return None


@frozen(kw_only=True)
class RunFacts:
    """What the rules know about a run. All paths are the container's, except where stated.

    Attributes:
        home: The home folder.
        volumes: The mount paths of all volumes and buckets.
        writable_volumes: The mount paths of the volumes that are writable.
        writable_buckets: The mount paths of the buckets that are writable.
        mounts: The paths of the mounted folders.
        read_mounted: Returns the text of a mounted file; None if there is none.
        keeps_disk: Whether files outside of volumes remain after the run, except for those in mounts and /tmp.
        gpus: The number of GPUs of each node; None if it is not known.
        nodes: The number of nodes.
        may_restart: Whether the command may be started again after a failure or a preemption.
        resumes: Whether each attempt continues from the newest complete checkpoint, whatever the command itself does.
        timeout: Seconds of an attempt.
        image: The base image; empty if there is none.
        has_uv: Whether uv is installed where the command runs; None if it is not known.
        env: The variables of the command. Those of secrets have a placeholder.
        has_unknown_variables: Whether there are further variables, such as those of a secret that the platform stores.
        path_exists: Returns whether a path on a volume exists; None if it is not known.
        used_checkpoint_folders: The checkpoint folders of other runs that have not ended, with the runs' ids.
        seconds_per_step: The duration of a training step of earlier runs of the command; None if there were none.
    """

    home: str = "/root"
    volumes: Sequence[str] = ()
    writable_volumes: Sequence[str] = ()
    writable_buckets: Sequence[str] = ()
    mounts: Sequence[str] = ()
    read_mounted: Callable[[str], str | None] = _nothing_known
    keeps_disk: bool = False
    gpus: int | None = None
    nodes: int = 1
    may_restart: bool = True
    resumes: bool = False
    timeout: float = 3600.0
    image: str = ""
    has_uv: bool | None = None
    env: Mapping[str, str] = field(factory=dict)
    has_unknown_variables: bool = False
    path_exists: Callable[[str], bool | None] = _nothing_known
    used_checkpoint_folders: Mapping[str, str] = field(factory=dict)
    seconds_per_step: float | None = None

    def is_kept(self, path: str) -> bool:
        """Return whether files that are written to an absolute path or URL remain after the run.

        Example:
            >>> RunFacts(writable_volumes=["/root/data"]).is_kept("/root/ckpts")
            False
        """
        if "://" in path:
            return True
        if not path.startswith("/"):
            return False  # the trainer runs in Ray's copy of the checkout
        path = posixpath.normpath(path)
        if any(is_below(path, volume) for volume in (*self.writable_volumes, *self.writable_buckets)):
            return True
        return self.keeps_disk and not any(is_below(path, folder) for folder in ("/tmp", *self.mounts, *self.volumes))

    def is_in_bucket(self, path: str) -> bool:
        """Return whether a path is in a bucket."""
        return any(is_below(posixpath.normpath(path), bucket) for bucket in self.writable_buckets)

    def is_provided(self, path: str) -> bool:
        """Return whether a path that is read may exist when the run starts."""
        if "://" in path or self.keeps_disk:
            return True
        return any(is_below(posixpath.normpath(path), folder) for folder in (*self.volumes, *self.mounts))

    @property
    def kept_folder(self) -> str | None:
        """A folder whose files remain after the run; None if there is none."""
        return self.writable_volumes[0] if self.writable_volumes else None


@frozen
class StartValues:
    """The configuration of one start: its arguments, and the defaults of its entrypoint.

    Attributes:
        start: The start.
        run: The run.
        earlier: The starts before it.
    """

    start: Start
    run: RunFacts
    earlier: Sequence[Start] = ()
    _schema: ConfigSchema = field(factory=ConfigSchema)

    def __getitem__(self, key: str) -> object:
        """Return the value of a key of ``SkyRLTrainConfig``; ``UNKNOWN`` if it is not known.

        For SFT, the name is the one of its own configuration.
        """
        if key in self.start.unknown_keys:
            return UNKNOWN
        text = self.start.overrides.get(key)
        if text is not None:
            return UNKNOWN if "${" in text else parse_value(text)
        if self.start.is_partial:
            return UNKNOWN
        return self._schema.default(self.start.kind, key, self.home)

    def has_key(self, key: str) -> bool | None:
        """Return whether the configuration has a key; None if it is not known."""
        if self.start.has_own_config or self.start.kind is EntrypointKind.TINKER:
            return None
        return self._schema.has_key(self.start.kind, key)

    def integer(self, key: str) -> int | None:
        """Return a whole number; None if it is none, or not known."""
        value = self[key]
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, key: str) -> bool | None:
        """Return a truth value, in which null counts as false; None if it is not known."""
        value = self[key]
        return False if value is None else value if isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """Return a text; empty for null, None if it is not known."""
        value = self[key]
        return "" if value is None else value if isinstance(value, str) else None

    def path(self, key: str) -> str | None:
        """Return a path with ``~`` replaced; None if it is not known."""
        text = self.text(key)
        return f"{self.home}{text[1:]}" if text and (text == "~" or text.startswith("~/")) else text

    def paths(self, key: str) -> list[str]:
        """Return the texts of a list; empty if it is not known."""
        value = self[key]
        items = value if isinstance(value, list) else [value]
        return [item for item in items if isinstance(item, str) and item]

    def variable(self, name: str) -> str | None:
        """Return a variable of the program; None if it is not defined, as far as is known."""
        return self.start.env.get(name, self.run.env.get(name))

    @property
    def home(self) -> str:
        """The home folder of the program."""
        return self.start.env.get("HOME", self.run.home)

    @property
    def prefix(self) -> str:
        """What the keys of the trainer begin with."""
        return "" if self.start.kind is EntrypointKind.SFT else "trainer."
