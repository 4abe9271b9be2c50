"""What the machine reports: counters of memory in both versions of control groups, and messages of the kernel."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from skyrl_modal.container.machine_logs import KernelMessages, memory_counters


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write files to a new folder."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_counters_of_version_2(tmp_path: Path) -> None:
    """The counters of this process's own group are read, with its peak; a limit of `max` is none."""
    (tmp_path / "cgroup").write_text("0::/user/run\n")
    events = "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n"
    files = {"memory.events": events, "memory.peak": "4096\n", "memory.max": "max\n"}
    write_files(tmp_path / "root" / "user" / "run", files)
    (tmp_path / "root" / "memory.events").write_text("oom_kill 7\n")

    found = memory_counters(str(tmp_path / "root"), str(tmp_path / "cgroup"))

    assert found == {"max": 5, "oom": 2, "oom_kill": 1, "oom_group_kill": 0, "peak_bytes": 4096}


def test_counters_of_version_1(tmp_path: Path) -> None:
    """In a container the group is mounted itself, while its path is that of the host."""
    (tmp_path / "cgroup").write_text("4:memory:/docker/0123\n0::/\n")
    files = {
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "memory.failcnt": "9\n",
        "memory.max_usage_in_bytes": "100\n",
        "memory.limit_in_bytes": "200\n",
    }
    write_files(tmp_path / "root" / "memory", files)

    found = memory_counters(str(tmp_path / "root"), str(tmp_path / "cgroup"))

    assert found == {"oom_kill": 3, "failcnt": 9, "peak_bytes": 100, "limit_bytes": 200}


def test_system_without_counters(tmp_path: Path) -> None:
    """A system without control groups, or with files in another format, has no counters."""
    assert memory_counters(str(tmp_path), str(tmp_path / "none")) == {}
    write_files(tmp_path / "memory", {"memory.oom_control": "a b c\n", "memory.failcnt": "many\n"})
    assert memory_counters(str(tmp_path), str(tmp_path / "none")) == {}


def test_relevant_messages_of_the_kernel() -> None:
    """Errors of GPUs and processes that were killed are returned, each once; other messages are not."""
    kernel, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.setblocking(False)
    messages = KernelMessages(os.dup(reader.fileno()))
    for record in (
        "6,1,1000000,-;eth0: link is up\n SUBSYSTEM=net\n",
        "3,2,2500000,-;NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.\n",
        "3,3,3000000,c;Memory cgroup out of memory: Killed process 7 (python)\n",
        "no message",
    ):
        kernel.send(record.encode())

    assert messages.read() == [
        "[2.500000] NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.",
        "[3.000000] Memory cgroup out of memory: Killed process 7 (python)",
    ]
    assert messages.read() == []
    messages.close()
    kernel.close()
    reader.close()


def test_kernel_of_this_machine() -> None:
    """Whether this machine permits it or not, reading the kernel's messages ends, and later ones count only."""
    messages = KernelMessages()
    assert messages.read() == messages.read() == []
    messages.close()
