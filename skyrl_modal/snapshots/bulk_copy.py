"""Many files are copied by several processes, each of which opens every folder once.

One process would spend most of the time in the interpreter, and threads would wait for the lock of the interpreter. The
processes only do what is the same for nearly all files. They report each file that they have copied; the caller copies
all others, one by one, with ``ContentPool.add``.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from skyrl_modal.snapshots import copy_worker
from skyrl_modal.snapshots.content_pool import MAX_SMALL_FILE_BYTES, UNFINISHED_PREFIX, ContentPool
from skyrl_modal.snapshots.copy_worker import NUMBER

# More processes wait for each other in the file system.
_MAX_PROCESSES = 4
# Files that a process copies before it takes more. All numbers of parts must fit into a pipe, also into a small one.
_PART, _MAX_PARTS = 250, 1_000
# The same as ``copy_worker.RESULT``, with the stamp as bytes.
_RESULT = struct.Struct("=I?QQ40s32s")


#: A file that was copied, and was unchanged while it was read: its position among the paths, whether it is in the tree,
#: its size and the number of bytes by which the pool grew, its stamp as ``stamps_of`` returns it, without a size if it
#: cannot be trusted, and the SHA-256 of its content.
CopiedFile = tuple[int, bool, int, int, bytes, bytes]


def copy_files(
    pool: ContentPool, lock: Path, root: str, paths: Sequence[str], *, tree: Path | None, latest_trusted: int
) -> Iterator[CopiedFile]:
    """Copy files into a pool, and link them into a new tree.

    Args:
        pool: The pool.
        lock: The lock of the store, which the caller has locked.
        root: The folder of the files.
        paths: Paths below the root.
        tree: The folder of the new tree; None for none.
        latest_trusted: Time in nanoseconds. The stamps of files that have changed then or later never match.

    Yields:
        What was copied, in any order. Files that are missing in it are links, large, changing, or cannot be copied.
    """
    if not sys.executable or not os.path.isfile(copy_worker.__file__):
        return
    pool.create_folders()
    part = max(_PART, -(-len(paths) // _MAX_PARTS))
    with ExitStack() as stack:
        queue, end = os.pipe()
        stack.callback(os.close, queue)
        with open(end, "wb") as numbers:
            numbers.write(b"".join(map(NUMBER.pack, range(-(-len(paths) // part)))))
        folders: dict[str, str | Path | None] = {"root": root, "pool": pool.folder, "lock": lock, "tree": tree}
        task = {
            # As bytes, because the other processes may have another encoding of paths.
            **{name: None if path is None else os.fsencode(path).decode("latin-1") for name, path in folders.items()},
            "small": MAX_SMALL_FILE_BYTES, "trusted": latest_trusted,
            "part": part, "queue": queue, "caller": os.getpid(),
        }  # fmt: skip
        file = stack.enter_context(tempfile.NamedTemporaryFile(dir=pool.folder, prefix=UNFINISHED_PREFIX))
        file.write(json.dumps(task).encode() + b"\n" + os.fsencode("\0".join(paths)))
        file.flush()
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        with suppress(OSError):  # the limit of processes is reached, or there is no such program: others do the work
            for _ in range(_process_count()):
                with open(file.name, "rb") as stdin:
                    processes.append(_start(stdin, queue))
        for process in processes:
            yield from _results(process)


def _process_count() -> int:
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(count, _MAX_PROCESSES)


def _start(stdin: IO[bytes], queue: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", copy_worker.__file__]
    return subprocess.Popen(
        argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[queue], start_new_session=True
    )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill the processes that have not ended, for example after Ctrl-C."""
    for process in processes:
        process.kill()
        with process:  # closes the pipe and waits
            pass


def _results(process: subprocess.Popen[bytes]) -> Iterator[CopiedFile]:
    """Wait for a process and yield its results. A process that was killed has none: its files are copied again."""
    output, _ = process.communicate()
    if process.returncode == 0 and len(output) % _RESULT.size == 0:
        yield from _RESULT.iter_unpack(output)
