"""Transfers that are killed several times continue where they were, and need as much memory for 20 MB as for 2 GB.

The large variants are slow tests: 2 GB in 5,000 files and in one file, killed ten times each.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.staging import STAGING_PREFIX
from tests.support.loopback import LoopbackModal

#: Megabytes of memory that a transfer may need: Python, the client, and the blocks that are transferred.
MEMORY_LIMIT = 500


@dataclass(frozen=True)
class Size:
    """What is transferred.

    Attributes:
        files: Number of files.
        bytes: Their size together.
        kills: How often the transfer is killed.
    """

    files: int
    bytes: int
    kills: int

    def __str__(self) -> str:
        return f"{self.files}-files-{self.bytes // 10**6}-MB"


SMALL = [Size(40, 80 * 10**6, 2), Size(1, 80 * 10**6, 2)]
LARGE = [Size(5000, 2 * 10**9, 10), Size(1, 2 * 10**9, 10)]
CASES = [
    ("local", SMALL[0]),
    ("local", SMALL[1]),
    ("modal", SMALL[1]),
    *(pytest.param(backend, size, marks=pytest.mark.slow) for backend in ("local", "modal") for size in LARGE),
]


def write_files(folder: Path, size: Size) -> None:
    """Write files of random content, with times in the past."""
    source = random.Random(size.files)
    block = source.randbytes(1 << 20)
    each = size.bytes // size.files
    for number in range(size.files):
        path = folder / f"{number % 50}" / f"file-{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for index in range(0, each, len(block)):
                head = f"{number}-{index}-".encode()
                file.write((head + block)[: min(len(block), each - index)])
        os.utime(path, (1_700_000_000, 1_700_000_000))


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def bytes_below(folder: Path) -> int:
    """Return the size of the files below a folder that other processes change, without blocks that are not complete."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            if name.endswith(".part"):
                continue
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


class KilledTransfer:
    """A transfer that is killed several times, and then completed.

    Args:
        arguments: Arguments of ``skyrl-modal``.
        progress: Returns a number that grows by the number of bytes that were transferred.
        size: What is transferred.
    """

    def __init__(self, arguments: list[str], progress: Callable[[], int], size: Size) -> None:
        self.summary = ""
        self.memory = 0.0
        self._command = [sys.executable, "-m", "skyrl_modal", *arguments]
        self._progress = progress
        self._size = size

    def run(self) -> None:
        """Kill the transfer each time it has transferred a further part, and complete it."""
        begin = self._progress()
        kills = 0
        for number in range(self._size.kills):
            kills += self._run_until(begin + self._size.bytes * (number + 1) // (self._size.kills + 2))
        done = self._start()
        _, status, usage = os.wait4(done.pid, 0)
        done.returncode = os.waitstatus_to_exitcode(status)
        assert done.stderr is not None
        self.summary = done.stderr.read()
        self.memory = usage.ru_maxrss / 1000
        assert done.returncode == 0, self.summary
        # A small transfer may have ended before it is killed.
        assert kills == self._size.kills or self._size in SMALL, f"{kills} kills: {self.summary}"

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _run_until(self, amount: int) -> bool:
        """Kill a new process as soon as the progress reaches a number. Return whether it was killed."""
        process = self._start()
        try:
            while process.poll() is None and self._progress() < amount:
                time.sleep(0.005)  # between two looks at the files
        finally:
            process.kill()
            process.communicate()
        return process.returncode == -signal.SIGKILL

    @property
    def resumed(self) -> float:
        """The bytes that the last attempt did not transfer."""
        found = re.search(r"([\d.]+) (GB|MB|kB) were there already", self.summary)
        return 0.0 if found is None else float(found[1]) * {"GB": 1e9, "MB": 1e6, "kB": 1e3}[found[2]]


@pytest.fixture
def options(backend: str, volume: VolumeSpec) -> list[str]:
    """Return the options of the commands."""
    return ["--backend", backend, "--volume", f"/root/data={volume.name}"]


def volume_files(backend: str, volume: VolumeSpec, request: pytest.FixtureRequest) -> Path:
    """Return the folder with the committed files of a volume."""
    if backend == "local":
        from skyrl_modal.backends.local.volume_folder import volume_folder

        return volume_folder(volume.name)
    server: LoopbackModal = request.getfixturevalue("shared_loopback")
    return server.volume(volume.name)


@pytest.mark.parametrize(("backend", "size"), CASES, indirect=["backend"], ids=str)
@pytest.mark.timeout(1500)
def test_killed_push_and_pull_continue(
    backend: str, volume: VolumeSpec, options: list[str], size: Size, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What was transferred before a kill is not transferred again, the copy is equal, and the memory is limited.

    On Modal, the volume has version 2, whose files are uploaded in blocks.
    """
    if backend == "modal":
        shared: LoopbackModal = request.getfixturevalue("shared_loopback")
        blobs = shared.plane.blobs.folder
        shared.plane.volumes.create(volume.name, version=2)
    write_files(tmp_path / "source", size)
    expected = digests(tmp_path / "source")
    launcher = Launcher(backend=backend, volumes=[volume], mounts=[], ray=None)
    launcher.push(__file__, "/root/data/present")
    files = volume_files(backend, volume, request)
    watched = files if backend == "local" else blobs

    push = KilledTransfer(
        ["push", *options, f"{tmp_path}/source/", "/root/data/new"], lambda: bytes_below(watched), size
    )
    push.run()

    assert digests(files / "new") == expected
    assert not list(files.glob(f"{STAGING_PREFIX}*"))
    if backend == "modal":
        for path in (files / "new").rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
    pull = KilledTransfer(
        ["pull", *options, "/root/data/new/", f"{tmp_path}/out"],
        lambda: sum(bytes_below(path) for path in tmp_path.glob(f"{STAGING_PREFIX}*")),
        size,
    )
    pull.run()
    assert digests(tmp_path / "out") == expected
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))
    part = size.bytes * size.kills / (size.kills + 2)
    for transfer in (push, pull):
        print(f"{backend} {size}: {transfer.summary.strip()}; {transfer.memory:.0f} MB of memory")
        assert transfer.resumed > 0.7 * part or "unchanged" in transfer.summary, transfer.summary
        assert transfer.memory < MEMORY_LIMIT
