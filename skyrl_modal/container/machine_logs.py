"""What the machine reports about a failed attempt: out of memory, errors of GPUs, and the state of the GPUs."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds for ``nvidia-smi``, which a broken driver can block, and for the kernel's messages.
GPU_TIMEOUT, KERNEL_TIMEOUT = 10.0, 1.0
#: Bytes of the output of ``nvidia-smi`` that are kept.
_MAX_OUTPUT = 1 << 16
#: Size of the largest record of /dev/kmsg, and number of lines that are kept.
_KERNEL_RECORD, _MAX_LINES = 8192, 200
#: Messages of NVIDIA's driver, such as ``NVRM: Xid (PCI:0000:17:00): 79``, and about processes that the kernel ended.
_KERNEL_LINE = re.compile(r"NVRM|Xid|oom-kill|oom_reaper|[Oo]ut of memory|segfault at")
#: Counters and sizes of the memory's control group: file, and the name of the value if the file has one value only.
_MEMORY_FILES = (
    ("memory.events", None),
    ("memory.peak", "peak_bytes"),
    ("memory.max", "limit_bytes"),
    ("memory.oom_control", None),
    ("memory.failcnt", "failcnt"),
    ("memory.max_usage_in_bytes", "peak_bytes"),
    ("memory.limit_in_bytes", "limit_bytes"),
)
#: Values that are not counters of events.
_IGNORED_VALUES = frozenset(("oom_kill_disable", "under_oom", "low", "high"))


def memory_counters(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> dict[str, int]:
    """Return the counters of this process's control group for memory, of version 2 or 1; nothing if there are none.

    ``oom_kill`` is the number of processes that were killed since there was no memory, ``oom`` how often there was
    none, ``max`` and ``failcnt`` how often the limit was reached (Linux's admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst). ``peak_bytes`` and ``limit_bytes`` are sizes.

    Args:
        root: The folder with the control groups.
        membership: The file with the groups of this process.
    """
    for folder in _memory_groups(Path(root), Path(membership)):
        values: dict[str, int] = {}
        for name, single in _MEMORY_FILES:
            with contextlib.suppress(OSError, ValueError):
                text = (folder / name).read_text(encoding="ascii", errors="replace")
                pairs = [(single, text)] if single else [line.split() for line in text.splitlines()]
                values |= {key: int(value) for key, value in pairs if key not in _IGNORED_VALUES}
        if values:
            return values
    return {}


def _memory_groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders that may have the files of this process's group: of version 2, then of version 1."""
    paths = {}
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    # In a container, the group itself is often mounted, while its path is that on the host.
    for controller, folder in (("", root), ("", root / "unified"), ("memory", root / "memory")):
        if controller in paths and ".." not in paths[controller].split("/"):
            yield folder / paths[controller]
        yield folder


class KernelMessages:
    """The kernel's messages about GPUs and ended processes, from now on; none where they may not be read.

    Args:
        descriptor: An open descriptor, of which each read returns one message (Linux's ABI/testing/dev-kmsg); None to
            open /dev/kmsg.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor
        if descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._descriptor, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """Return the new messages."""
        lines: list[str] = []
        deadline = time.monotonic() + KERNEL_TIMEOUT
        with contextlib.suppress(OSError):
            while self._descriptor is not None and time.monotonic() < deadline:
                try:
                    record = os.read(self._descriptor, _KERNEL_RECORD)
                except BrokenPipeError:  # it was overwritten before it could be read
                    continue
                if not record:
                    break
                line = relevant_message(record.decode("utf-8", "replace"))
                lines += [] if line is None else [line]
        return lines[-_MAX_LINES:]

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def relevant_message(record: str) -> str | None:
    r"""Return a message of the kernel with its time in seconds; None if it is about something else.

    Args:
        record: ``PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`` and further lines.

    Example:
        >>> relevant_message("4,7,9000000,-;NVRM: Xid (PCI:0000:17:00): 79\n")
        '[9.000000] NVRM: Xid (PCI:0000:17:00): 79'
    """
    header, _, text = record.partition(";")
    fields, line = header.split(","), text.partition("\n")[0]
    if len(fields) < 3 or not fields[2].isdecimal() or not _KERNEL_LINE.search(line):
        return None
    return f"[{int(fields[2]) / 1e6:.6f}] {line}"


def gpu_report() -> str:
    """Return what ``nvidia-smi`` prints; empty if there is no such program."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if not any(os.access(os.path.join(folder, "nvidia-smi"), os.X_OK) for folder in folders):
        return ""
    import subprocess

    from skyrl_modal.container.gpus import end_program, start_program  # imported here: most machines have no GPU

    process = start_program(("nvidia-smi",), stderr=subprocess.STDOUT)
    if process is None:
        return ""
    output = end_program(process, time.monotonic() + GPU_TIMEOUT)
    if output is None:
        return f"nvidia-smi did not exit within {GPU_TIMEOUT:g} s\n"
    code = f"nvidia-smi exited with code {process.returncode}\n" if process.returncode else ""
    return output[:_MAX_OUTPUT].decode("utf-8", "replace") + code
