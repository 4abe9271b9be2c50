"""The watch on the processes of a Ray node, with programs that have the names of Ray's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal.container import ray_watch
from skyrl_modal.container.ray_watch import RayWatch

TIMEOUT = 20.0
#: Starts the programs that are its arguments, prints their pids, and does not collect their exit status.
ROOT = """
import subprocess, sys
started = [subprocess.Popen([program, "600"]) for program in sys.argv[1:]]
print(*(process.pid for process in started), flush=True)
sys.stdin.read()
"""


class Node:
    """A process with children that have the names of Ray's, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        programs = [folder / "gcs_server", folder / "raylet"]
        for program in programs:
            program.symlink_to(shutil.which("sleep") or "/bin/sleep")
        self.process = subprocess.Popen(
            [sys.executable, "-c", ROOT, *programs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.gcs_server, self.raylet = map(int, self.process.stdout.readline().split())
        self.is_ended = threading.Event()

    def watch(self) -> RayWatch:
        """Watch both processes."""
        return RayWatch(self.process.pid, ["gcs_server", "raylet"], self.is_ended.set)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Yield a node. The programs are found immediately, and `ray start` has little time to exit by itself."""
    monkeypatch.setattr(ray_watch, "_FIND_INTERVAL", 0.01)
    monkeypatch.setattr(ray_watch, "_EXIT_TIMEOUT", 0.1)
    node = Node(tmp_path)
    yield node
    os.killpg(node.process.pid, signal.SIGKILL)
    node.process.communicate()


@pytest.mark.parametrize("command", ["stop", "status"])
def test_ray_stop_is_recognized(node: Node, tmp_path: Path, command: str) -> None:
    """A process that exits while `ray stop` runs was stopped by it, and another command of Ray is not the cause."""
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho up\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        watch = node.watch()
        os.kill(node.raylet, signal.SIGKILL)
        assert node.is_ended.wait(TIMEOUT)
        process.communicate(b"\n")

    assert (watch.exited, watch.is_stopped) == ("raylet", command == "stop")


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_exit_of_a_process_ends_the_node(node: Node, name: str) -> None:
    """The watch names the process that has exited, and then ends `ray start`."""
    watch = node.watch()
    assert watch.exited is None

    os.kill(getattr(node, name), signal.SIGKILL)

    assert node.is_ended.wait(TIMEOUT)
    assert watch.exited == name
    watch.close()


def test_process_that_exited_before_is_found(node: Node) -> None:
    """A process that exited before the watch began is found, since `ray start` has not collected its exit status."""
    os.kill(node.raylet, signal.SIGKILL)

    watch = node.watch()

    assert node.is_ended.wait(TIMEOUT)
    assert watch.exited == "raylet"
    watch.close()


def test_closed_watch_reports_nothing(node: Node) -> None:
    """After `close`, the exit of a process is no failure: the node is being ended."""
    watch = node.watch()
    watch.close()

    os.kill(node.gcs_server, signal.SIGKILL)

    assert not node.is_ended.wait(0.5)
    assert watch.exited is None
