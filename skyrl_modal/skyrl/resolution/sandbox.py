"""The execution of a command in namespaces of its own, without a trainer, a network, and the user's files.

The command sees the system's programs (``/usr``), the files of the mounts, and folders in memory of bounded size. Its
processes are killed together with their namespace when a limit is exceeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from skyrl_modal.skyrl.resolution.calls_file import read_calls
from skyrl_modal.skyrl.resolution.namespace_usage import find_usage
from skyrl_modal.skyrl.resolution.process_limits import enter_groups, limited_groups
from skyrl_modal.skyrl.resolution.records import EndOfExecution, Recording, ResolutionMethod
from skyrl_modal.skyrl.resolution.stubs import CALLS_FILE, STUBS_FOLDER, create_stubs

#: Seconds after which the command is killed.
TIMEOUT = 2.0
#: Seconds between the samples of the number of processes and their memory.
_SAMPLE_INTERVAL = 0.05
MAX_PROCESSES = 200
MAX_MEMORY_BYTES = 1 << 30
#: Limits of each process, in KiB: address space, and size of a file.
_ADDRESS_SPACE_KIB = 1 << 20
_FILE_SIZE_KIB = 4096
_MEMORY_FOLDER_BYTES = 64 << 20
#: Where a system may have its programs and libraries, besides /usr.
_PROGRAM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
#: What the dynamic linker and links to programs need of /etc. Nothing else of it is visible.
_LINKER_FILES = ("/etc/alternatives", "/etc/ld.so.cache")
_PATH = f"{STUBS_FOLDER}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_LINE_LENGTH = 300
_LIMITED_SHELL = (
    f"ulimit -c 0 -f {_FILE_SIZE_KIB} -n 256 -t 3 -v {_ADDRESS_SPACE_KIB} || exit 125; "
    'cd -- "$1" 2>/dev/null || cd /; exec /bin/bash -c "$2"'
)


@frozen(kw_only=True)
class SandboxInput:
    """What is executed.

    Attributes:
        command: A shell string.
        workdir: The folder that it runs in.
        env: Its variables. PATH is replaced.
        trees: Folders of this machine with files, by their paths in the sandbox, in which they are read-only.
        folders: Further folders that exist, such as those of volumes.
        gpus: The number of GPUs of a node.
        gpu_name: Their name.
    """

    command: str
    workdir: str
    env: Mapping[str, str]
    trees: Mapping[str, Path]
    folders: Sequence[str] = ()
    gpus: int = 0
    gpu_name: str = "GPU"


class SandboxError(Exception):
    """The sandbox could not be started."""


def execute(binary: str, given: SandboxInput, parent: str | None = None, *, overlays: bool = False) -> Recording:
    """Execute a command, and return the calls of programs that it made.

    Args:
        binary: The path of bubblewrap.
        given: What is executed.
        parent: The folder for temporary files; None for TMPDIR.
        overlays: Whether the command can write below the mounts, to memory, as in a run. Not every kernel and every
            version of bubblewrap can do this.

    Raises:
        SandboxError: bubblewrap does not work here.
        OSError: Temporary files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="skyrl-modal-", dir=parent) as name:
        folder = Path(name)
        stubs = folder / "programs"
        stubs.mkdir()
        create_stubs(stubs, gpus=given.gpus, gpu_name=given.gpu_name)
        calls, errors = folder / "calls", folder / "errors"
        calls.touch()
        env = {**given.env, "PATH": _PATH}
        argv = [
            *_bubblewrap_argv(binary, given, stubs, calls, overlays=overlays),
            "--",
            "/bin/bash",
            "-c",
            _LIMITED_SHELL,
            "bash",
        ]
        written = list(given.trees) if overlays else []
        argv += [given.workdir, given.command]
        with limited_groups(processes=2 * MAX_PROCESSES, memory_bytes=MAX_MEMORY_BYTES) as groups:
            end, exit_code = _run_limited(argv, env, errors, written, groups)
        return Recording(
            calls=read_calls(_read_start(calls), env),
            method=ResolutionMethod.EXECUTED,
            end=end,
            exit_code=exit_code,
            last_line=_last_line(errors),
        )


def _bubblewrap_argv(binary: str, given: SandboxInput, stubs: Path, calls: Path, *, overlays: bool) -> list[str]:
    argv = [binary, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    argv += ["--uid", "0", "--gid", "0", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    argv += [
        "--hostname",
        "skyrl-modal",
        "--size",
        str(_MEMORY_FOLDER_BYTES),
        "--tmpfs",
        "/",
        "--ro-bind",
        "/usr",
        "/usr",
    ]
    for path in _PROGRAM_FOLDERS:
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            argv += ["--ro-bind", path, path]
    for path in _LINKER_FILES:
        argv += ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc", "--dev", "/dev", "--size", str(_MEMORY_FOLDER_BYTES), "--tmpfs", "/dev/shm"]
    argv += ["--remount-ro", "/dev", "--ro-bind", str(stubs), STUBS_FOLDER, "--bind", str(calls), CALLS_FILE]
    for path in ("/root", "/tmp", given.env.get("HOME", "/root"), *given.folders):
        argv += ["--dir", path]
    for path, folder in sorted(given.trees.items(), key=lambda item: item[0].count("/")):
        argv += ["--overlay-src", str(folder), "--tmp-overlay", path] if overlays else ["--ro-bind", str(folder), path]
    return [*argv, "--disable-userns"] if overlays else argv


def _run_limited(
    argv: Sequence[str], env: Mapping[str, str], errors: Path, written: Sequence[str], groups: Sequence[Path]
) -> tuple[EndOfExecution, int | None]:
    """Run bubblewrap, and kill its namespace when a limit is exceeded. Return how it ended, and the exit code."""
    reading, writing = os.pipe()
    # At its end from the beginning. The shell replaces it by /dev/null for what it starts in the background.
    empty_reading, empty_writing = os.pipe()
    os.close(empty_writing)
    try:
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                enter_groups([argv[0], "--json-status-fd", str(writing), *argv[1:]], groups),
                stdin=empty_reading,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=dict(env),
                pass_fds=[writing],
                cwd="/",
            )
    except OSError as error:
        os.close(reading)
        raise SandboxError(str(error)) from error
    finally:
        os.close(writing)
        os.close(empty_reading)
    with os.fdopen(reading, "rb") as status:
        init = _read_status(status.readline()).get("child-pid")
        end = EndOfExecution.EXITED
        try:
            end = _wait_within_limits(process, init, written)
        finally:
            if process.poll() is None:
                _kill_namespace(process, init)
            process.wait()
        exit_code = _read_status(status.readline()).get("exit-code")
    if end is EndOfExecution.EXITED and (exit_code is None or init is None):
        raise SandboxError(_last_line(errors))
    return end, exit_code if end is EndOfExecution.EXITED else None


def _wait_within_limits(process: subprocess.Popen[bytes], init: int | None, written: Sequence[str]) -> EndOfExecution:
    deadline = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_SAMPLE_INTERVAL, max(deadline - time.monotonic(), 0.001)))
            return EndOfExecution.EXITED
        if time.monotonic() >= deadline:
            return EndOfExecution.TIMEOUT
        usage = find_usage(init, written, MAX_PROCESSES) if init is not None else None
        if usage is not None and (usage.processes > MAX_PROCESSES or usage.memory_bytes > MAX_MEMORY_BYTES):
            return EndOfExecution.LIMIT


def _kill_namespace(process: subprocess.Popen[bytes], init: int | None) -> None:
    """Kill the first process of the namespace, and with it all others; bubblewrap then exits."""
    if init is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, 9)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
    process.kill()


def _read_status(line: bytes) -> dict[str, int]:
    try:
        value = json.loads(line)
    except ValueError:  # bubblewrap failed before
        return {}
    return value if isinstance(value, dict) else {}


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read((_FILE_SIZE_KIB + 1) << 10)


def _last_line(errors: Path) -> str:
    """Return the last line of standard error that is not a trace of the shell (``set -x``)."""
    with errors.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 16_384, 0))
        lines = file.read().decode("utf-8", "replace").splitlines()
    text = next((line for line in reversed(lines) if line.strip() and not line.startswith("+")), "")
    return "".join(character if character.isprintable() else " " for character in text[:_LAST_LINE_LENGTH]).strip()
