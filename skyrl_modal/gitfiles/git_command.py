"""Run git on a repository that is not trusted.

The configuration and the attributes of a repository can name programs that git executes: filters, hooks, a file system
monitor, a pager, a transport. This module runs only commands that read, and runs them so that none of these programs
is executed:

- Options given by ``-c``, which take precedence over every configuration file, replace the keys that name programs.
- The caller overrides the filters (see ``filter_overrides``) where a command converts file contents.
- Every transport is refused, and missing objects of a partial clone are not fetched.
- The repository and the worktree are given explicitly. git then searches for no other repository, and does not refuse
  a folder that belongs to another user.
- ``GIT_*`` variables of the caller are removed, except those that select the user's configuration:
  ``GIT_CONFIG_GLOBAL``, ``GIT_CONFIG_SYSTEM``, ``GIT_CONFIG_NOSYSTEM``, and ``GIT_CONFIG_COUNT`` with its keys and
  values.
- Nothing is written to the repository. A command may write an index that is passed to it, which is outside of it.
- Time, memory and output are limited; git and its children are killed at the time limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from skyrl_modal.dataclass import dataclass

if sys.platform == "linux":
    import resource

#: Time after which a git process is killed.
GIT_TIMEOUT_SECONDS = 20.0
#: Time after which the reader of a git process looks for files that git would wait for: see ``GitProcess``.
SLOW_GIT_SECONDS = 1.0
#: Address space of a git process. Pack files are mapped in small windows, so that large ones fit.
MAX_MEMORY_BYTES = 4 << 30
#: Output of a git process. The index of a million files is listed in about 150 MB.
MAX_OUTPUT_BYTES = 512 << 20
_MAX_ERROR_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 16

_KEPT_VARIABLE = re.compile(r"GIT_CONFIG_(?:GLOBAL|SYSTEM|NOSYSTEM|COUNT|(?:KEY|VALUE)_[0-9]+)")
_SET_VARIABLES = {
    # An empty list of allowed protocols also overrides `protocol.NAME.allow` in a configuration file.
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_OPTIONS = (
    "--no-pager",
    *(
        argument
        for setting in (
            "core.fsmonitor=",
            "core.hooksPath=/dev/null",
            "core.pager=cat",
            "core.sshCommand=false",
            "core.gitProxy=false",
            "core.askPass=false",
            "core.editor=false",
            "core.alternateRefsCommand=false",
            "credential.helper=",
            "diff.external=",
            "protocol.allow=never",
            "core.packedGitWindowSize=32m",
            "core.packedGitLimit=512m",
        )
        for argument in ("-c", setting)
    ),
)


class GitCommandError(Exception):
    """git could not be run, or did not succeed. The message states why."""


@dataclass(frozen=True, slots=True)
class GitResult:
    """The end of a git process.

    Attributes:
        returncode: Its exit code.
        stdout: Its output.
        stderr: The first part of its error output.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


def filter_overrides(keys: Iterable[str]) -> list[str]:
    """Return settings that disable every filter in a configuration.

    Args:
        keys: The keys of the configuration, such as ``filter.lfs.clean``.

    Raises:
        GitCommandError: A filter has a name that no ``-c`` option can hold.

    Example:
        >>> filter_overrides(["filter.lfs.clean", "core.bare"])
        ['filter.lfs.clean=', 'filter.lfs.smudge=', 'filter.lfs.process=', 'filter.lfs.required=false']
    """
    names = sorted({key.split(".", 1)[1].rpartition(".")[0] for key in keys if key.startswith("filter.")})
    for name in names:
        if "=" in name or "\n" in name:
            raise GitCommandError(f"the filter {name!r} cannot be disabled because of its name")
    values = ("clean=", "smudge=", "process=", "required=false")
    return [f"filter.{name}.{value}" for name in names for value in values]


def find_git(worktree: Path) -> str | None:
    """Return the program git of PATH; None if there is none.

    Entries of PATH that are relative or lead into the checkout are ignored, such as the one of an environment in it: a
    program there belongs to the checkout.

    Args:
        worktree: A worktree. The repositories that contain it count as the same checkout, up to the home folder.
    """
    home = os.path.realpath(os.path.expanduser("~"))
    inside = Path(os.path.realpath(worktree))
    folders = {f"{inside}/"}
    for parent in inside.parents:
        if f"{home}/".startswith(f"{parent}/"):
            break
        if os.path.lexists(parent / ".git"):
            folders.add(f"{parent}/")
    prefixes = tuple(folders - {"//"})
    for entry in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = os.path.join(entry, "git")
        if not os.path.isabs(entry) or not os.access(program, os.X_OK) or os.path.isdir(program):
            continue
        if not any(f"{os.path.realpath(path)}/".startswith(prefixes) for path in (entry, program)):
            return program
    return None


def git_deadline() -> float:
    """Return the time (of ``time.monotonic``) at which a git process is killed whose output is read from now on."""
    return time.monotonic() + GIT_TIMEOUT_SECONDS


class GitProcess:
    """A running git process. It can be used in a ``with`` statement, which kills it at the end.

    Args:
        git_dir: The repository; None to run outside of any repository.
        worktree: The folder of its worktree.
        arguments: The command and its options.
        cwd: The folder to run in; the worktree if None.
        settings: Further ``KEY=VALUE`` settings that take precedence over the configuration.
        system_file: The configuration file of the system; the one that git was built for if None.
        index: An index outside of the repository, which git reads instead of its own, and may write.
        stdin: The input.
        max_output: Number of bytes of output after which the process is killed.
        find_cause: Called if the process has not ended ``SLOW_GIT_SECONDS`` after the start of ``read``. It returns a
            cause for which the process would never end, and the process is then killed; or an empty text.

    Raises:
        GitCommandError: git is not installed, or cannot be started.
    """

    def __init__(
        self,
        git_dir: Path | None,
        worktree: Path,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        settings: Iterable[str] = (),
        system_file: Path | None = None,
        index: str | None = None,
        stdin: bytes = b"",
        max_output: int = MAX_OUTPUT_BYTES,
        find_cause: Callable[[], str] | None = None,
    ) -> None:
        program = find_git(worktree)
        if program is None:
            raise GitCommandError("git is not installed")
        overrides = [argument for setting in settings for argument in ("-c", setting)]
        # A path that is no repository keeps git from searching for one.
        place = [f"--git-dir={os.devnull if git_dir is None else git_dir}", f"--work-tree={worktree}"]
        locks = ("--no-optional-locks",) if index is None else ()
        self._name = arguments[0]
        self._max_output = max_output
        self._find_cause = find_cause
        self._deadline = self._slow_at = 0.0
        with _open_input(stdin) as source:
            try:
                self._process = subprocess.Popen(
                    [program, *_OPTIONS, *locks, *overrides, *place, *arguments],
                    cwd=worktree if cwd is None else cwd,
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=_environment(system_file, index),
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise GitCommandError(f"git cannot be started ({error})") from error
        _limit_memory(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def read(self, deadline: float | None = None) -> GitResult:
        """Wait for the process and return its result.

        Args:
            deadline: Time (of ``time.monotonic``) at which the process is killed; ``GIT_TIMEOUT_SECONDS`` from now if
                None.

        Raises:
            GitCommandError: A limit was exceeded; the process was then killed.
        """
        self._deadline = git_deadline() if deadline is None else deadline
        self._slow_at = time.monotonic() + SLOW_GIT_SECONDS
        try:
            stdout, stderr = self._read_output()
            self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except BaseException as error:
            self.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise self._timeout_error() from None
            raise
        return GitResult(self._process.returncode, stdout, stderr)

    def read_stdout(self, deadline: float | None = None) -> bytes:
        """Wait for the process and return its output.

        Args:
            deadline: As for ``read``.

        Raises:
            GitCommandError: A limit was exceeded, or the exit code is not 0.
        """
        result = self.read(deadline)
        if result.returncode:
            lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
            cause = lines[0] if lines else f"exit code {result.returncode}"
            raise GitCommandError(f"`git {self._name}` failed ({cause})")
        return result.stdout

    def kill(self) -> None:
        """Kill the process and its children, if it has not ended, and release its pipes."""
        # Until wait() returns, the process id is not reused, even if the process has ended and a child still runs.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> GitProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read_output(self) -> tuple[bytes, bytes]:
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        chunks: list[bytes] = []
        errors = b""
        size = 0
        with selectors.DefaultSelector() as selector, stdout, stderr:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while selector.get_map():
                until = self._deadline if self._find_cause is None else min(self._deadline, self._slow_at)
                ready = selector.select(max(0.0, until - time.monotonic()))
                if self._find_cause is not None and time.monotonic() >= self._slow_at:
                    cause = self._find_cause()
                    self._find_cause = None
                    if cause:
                        raise GitCommandError(f"`git {self._name}` would not end: {cause}")
                    continue
                if not ready and time.monotonic() >= self._deadline:
                    raise self._timeout_error()
                for key, _ in ready:
                    data = os.read(key.fd, _CHUNK_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is stderr:
                        errors = (errors + data)[:_MAX_ERROR_BYTES]
                    else:
                        chunks.append(data)
                        size += len(data)
                        if size > self._max_output:
                            raise GitCommandError(f"`git {self._name}` wrote more than {self._max_output:,} bytes")
        return b"".join(chunks), errors

    def _timeout_error(self) -> GitCommandError:
        return GitCommandError(f"`git {self._name}` did not end within {GIT_TIMEOUT_SECONDS:g} s")


def run_git(git_dir: Path | None, worktree: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git and return its output.

    Raises:
        GitCommandError: git is not installed, a limit was exceeded, or the exit code is not 0.
    """
    return GitProcess(git_dir, worktree, arguments, stdin=stdin).read_stdout()


def _open_input(content: bytes) -> IO[bytes]:
    """Return an open file with the input of a process."""
    if not content:
        return open(os.devnull, "rb")
    import tempfile  # imported here, since most processes have no input

    source = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    source.write(content)
    source.seek(0)
    return source


def _environment(system_file: Path | None, index: str | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key[:4] != "GIT_" or _KEPT_VARIABLE.fullmatch(key)}
    kept |= _SET_VARIABLES
    if system_file is not None:
        kept["GIT_CONFIG_SYSTEM"] = str(system_file)
    if index is not None:
        kept["GIT_INDEX_FILE"] = index
    return kept


def _limit_memory(pid: int) -> None:
    if sys.platform != "linux":
        return
    # If the process has ended, or a sandbox forbids the call, the limits on time and output remain.
    with contextlib.suppress(OSError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
