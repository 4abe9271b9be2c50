"""The shells that remove the scratch folders of a run, however the run ends.

Each rank is started by a wrapper shell, which waits for it and removes its folders. If that shell is killed, the kernel
ends the rank, and a cleanup shell removes the folders: it is not part of the chain of processes, and waits until all of
them have exited. None of these shells removes a file while a process of the rank can still use it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

#: Removes folders, including parts whose permissions were removed. Most have none, and need one process.
_REMOVE = """
remove() {
  for folder; do
    [ -d "$folder" ] || continue
    rm -rf "$folder" 2>/dev/null && continue
    chmod -R u+rwX "$folder" 2>/dev/null
    rm -rf "$folder"
  done
}
"""
#: Runs a program, and removes folders when it, and all processes that have the same standard input, have exited.
#: Standard input is the end of a pipe to write to, whose other end is the descriptor ``alive``: if the program is
#: killed, the process that it has started may exist for some time. Shells such as dash can close descriptors with one
#: digit only, and standard input is the one whose number is known.
_WRAPPER = (
    _REMOVE
    + """
alive=$1 scratch=$2 further=$3
shift 3
"$@"
code=$?
exec <"/dev/fd/$alive"
read -r _
remove "$scratch" "$further"
exit $code
"""
)
#: Removes folders when all processes have exited that have the other end of the pipe on standard input.
_CLEANUP = _REMOVE + 'read -r _; remove "$@"'
#: Name of the cleanup shell in the list of processes.
CLEANUP_NAME = "skyrl-cleanup"


def wrapper_argv(argv: Sequence[str], *, alive: int, scratch: Path, further: Path | None) -> list[str]:
    """Return the arguments of the shell that runs a program, and removes folders afterwards.

    Args:
        argv: The program with its arguments. Its standard input is that of the shell: the end of a pipe to write to.
        alive: The descriptor of the pipe's other end.
        scratch: A folder to remove.
        further: A second one; None if there is none.
    """
    return ["/bin/sh", "-c", _WRAPPER, "skyrl-rank", str(alive), str(scratch), str(further or ""), *argv]


def start_cleanup(
    folders: Iterable[Path], *, alive: int, env: Mapping[str, str], pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start the shell that removes the folders of a run if another one could not.

    Args:
        folders: The folders.
        alive: The end to read from of a pipe whose other end all processes of the run have.
        env: Its environment.
        pass_fds: Descriptors that it keeps open until the folders have been removed.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", _CLEANUP, CLEANUP_NAME, *map(str, folders)],
        stdin=alive,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd="/",
        pass_fds=pass_fds,
        start_new_session=True,
    )
