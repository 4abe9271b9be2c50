"""The logs of Ray and SkyRL that a rank keeps: real files in real folders, also hostile ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal.container import log_follower, log_keeper, log_sources
from skyrl_modal.container.kept_log_folder import KeptLogLimits
from skyrl_modal.container.log_keeper import LogKeeper
from skyrl_modal.container.log_selection import LogLimits
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.protocol.rank_config import RankConfig

SESSION = "session_2026-01-01_00-00-00_000000_1"
Make = Callable[..., LogKeeper]


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of Ray's logs in a folder for temporary files, which is TMPDIR."""
    logs = tmp_path / "tmp" / "ray" / SESSION / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "tmp" / "ray" / "session_latest").symlink_to(f"/elsewhere/{SESSION}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(log_keeper, "_TMP", str(tmp_path / "tmp"))
    monkeypatch.setattr(log_keeper, "POLL_INTERVAL", 3600.0)  # the tests call `collect`
    return logs


@pytest.fixture
def skyrl(ray: Path, tmp_path: Path) -> Path:
    """Return the folder of SkyRL's logs."""
    folder = tmp_path / "tmp" / "skyrl-logs"
    folder.mkdir()
    return folder


@pytest.fixture
def notes() -> list[str]:
    """Return the messages for the log of the supervisor."""
    return []


@pytest.fixture
def make(tmp_path: Path, notes: list[str]) -> Iterator[Make]:
    """Return a function that creates the keeper of a rank; all are closed at the end."""
    made: list[LogKeeper] = []

    def create(config: RankConfig | None = None, secrets: SecretMask | None = None, **options: object) -> LogKeeper:
        keeper = LogKeeper(
            tmp_path / "kept",
            config or RankConfig(),
            secrets or SecretMask(["s3cret-value"]),
            note=notes.append,
            **options,  # type: ignore[arg-type]  # typed by LogKeeper
        )
        made.append(keeper)
        return keeper

    yield create
    for keeper in made:
        keeper.close()


def kept(folder: Path) -> dict[str, bytes]:
    """Return the kept logs by their paths, without what the machine reports."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/machine/" not in name}


def test_logs_are_kept_as_they_grow(make: Make, ray: Path, skyrl: Path, tmp_path: Path) -> None:
    """What is appended is kept immediately and masked, also a value that is written in two parts, without the end."""
    keeper = make()
    keeper.begin(1)
    (ray / "worker-1.err").write_text("key=s3cret-")
    (skyrl / "run").mkdir()
    (skyrl / "run" / "infra-1.log").write_text("vLLM starts\n")
    keeper.collect()
    assert kept(tmp_path / "kept") == {"1/ray/worker-1.err": b"key=", "1/skyrl-logs/run/infra-1.log": b"vLLM starts\n"}

    for path, text in ((ray / "worker-1.err", "value!\ns3cret"), (skyrl / "run" / "infra-1.log", "it ended\n")):
        with path.open("a") as file:
            file.write(text)
    keeper.collect()
    keeper.close()

    assert kept(tmp_path / "kept") == {
        "1/ray/worker-1.err": b"key=********!\ns3cret",
        "1/skyrl-logs/run/infra-1.log": b"vLLM starts\nit ended\n",
    }
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_each_attempt_has_its_own_logs(make: Make, skyrl: Path, tmp_path: Path) -> None:
    """What a file receives during an attempt is in the folder of the attempt; a repeated attempt has a further one."""
    log = skyrl / "infra.log"
    keeper = make()
    keeper.begin(1)
    log.write_text("one\n")
    keeper.begin(1)
    keeper.begin(2)
    with log.open("a") as file:
        file.write("two\n")
    keeper.close()
    again = make()
    again.begin(2)
    again.close()

    assert kept(tmp_path / "kept") == {
        "1/skyrl-logs/infra.log": b"one\n",
        "2/skyrl-logs/infra.log": b"two\n",
        "2.2/skyrl-logs/infra.log": b"one\ntwo\n",
    }


def test_hostile_files_are_not_followed(make: Make, ray: Path, skyrl: Path, tmp_path: Path, notes: list[str]) -> None:
    """Links lead nowhere, pipes do not block, and names cannot leave the folder or control a terminal."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private").write_text("private")
    (skyrl / "file-link").symlink_to(tmp_path / "outside" / "private")
    (skyrl / "folder-link").symlink_to(tmp_path / "outside")
    (tmp_path / "tmp" / "skyrl-logs-2").symlink_to(tmp_path / "outside")
    os.mkfifo(skyrl / "pipe")
    (skyrl / "device").symlink_to("/dev/zero")
    for name in (b"a\x1b[2J", b"..\xff", b"...", "x" * 255):
        (skyrl / os.fsdecode(name)).write_text("text\n")
    deep = skyrl.joinpath(*["d"] * 30)
    deep.mkdir(parents=True)
    (deep / "log").write_text("too deep")
    keeper = make()
    keeper.begin(1)
    keeper.collect()
    keeper.close()

    found = kept(tmp_path / "kept")
    assert set(found.values()) == {b"text\n"}
    assert len(found) == 4
    assert all(re.fullmatch(r"1/skyrl-logs/[A-Za-z0-9_]{0,100}~[0-9a-f]{8}", name) for name in found)
    assert notes == []


def test_huge_files_are_read_from_their_end(make: Make, skyrl: Path, tmp_path: Path) -> None:
    """Of a file of 10 GB only the end is read; a line that begins before it is left out, as it may be half a value."""
    with (skyrl / "sparse.log").open("wb") as file:
        file.seek(10 << 30)
        file.write(b"s3cret-" + b"x" * log_follower.MAX_FILE_BYTES)
        file.seek(-16, os.SEEK_CUR)
        file.write(b"value\nlast line\n")
    keeper = make()
    keeper.begin(1)
    keeper.close()

    [content] = kept(tmp_path / "kept").values()
    assert content.endswith(b"since they were written too fast <==\nlast line\n")


def test_files_that_are_replaced(make: Make, ray: Path, tmp_path: Path) -> None:
    """A rotated log is kept once, a replaced and a shortened one from their beginning, and a removed one remains."""
    log = ray / "dashboard.log"
    log.write_text("first file\n")
    (ray / "removed.log").write_text("it was here\n")
    (ray / "short.log").write_text("a long line\n")
    keeper = make()
    keeper.begin(1)
    keeper.collect()
    log.rename(ray / "dashboard.log.1")
    with (ray / "dashboard.log.1").open("a") as file:
        file.write("its end\n")
    log.write_text("second file\n")
    (ray / "removed.log").unlink()
    (ray / "short.log").write_text("new\n")
    keeper.close()

    found = kept(tmp_path / "kept")
    assert sorted(found) == ["1/ray/dashboard.log", "1/ray/removed.log", "1/ray/short.log"]
    lines = found["1/ray/dashboard.log"].splitlines()
    assert sorted(lines) == [b"first file", b"its end", b"second file"]
    assert found["1/ray/removed.log"] == b"it was here\n"
    assert found["1/ray/short.log"] == b"a long line\n==> the file was written from its beginning again <==\nnew\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_file_that_may_not_be_read(make: Make, ray: Path, notes: list[str]) -> None:
    """A file without permissions is named in the log of the supervisor; nothing fails."""
    (ray / "worker.out").write_text("text")
    (ray / "worker.out").chmod(0)
    keeper = make()
    keeper.begin(1)
    keeper.close()

    assert notes == ["a log could not be kept: ray/worker.out: Permission denied"]


def test_number_and_bytes_are_bounded(make: Make, skyrl: Path, tmp_path: Path, notes: list[str]) -> None:
    """Of too many logs, those with errors are kept, and of too many bytes those that have changed last."""
    limits = KeptLogLimits(log=LogLimits(10_000, 1000, 1000, 1000), files=20, start_bytes=60_000)
    keeper = make(limits=limits)
    keeper.begin(1)
    for number in range(50):
        (skyrl / f"{number}.out").write_text("nothing\n")
    keeper.collect()
    for number in range(50, 70):
        (skyrl / f"{number}.out").write_text("ValueError: 3\n")
    keeper.collect()
    assert set(kept(tmp_path / "kept").values()) == {b"ValueError: 3\n"}
    for number in range(70, 90):
        (skyrl / f"{number}.out").write_text("RuntimeError: " + "x" * 9000 + "\n")
        keeper.collect()
    keeper.close()

    found = kept(tmp_path / "kept")
    assert sum(map(len, found.values())) <= limits.start_bytes
    assert notes
    assert "logs are not kept, since there were too many or they were too large" in notes[0]


def test_old_starts_are_removed(make: Make, skyrl: Path, tmp_path: Path) -> None:
    """A run that is preempted often keeps the logs of its last starts."""
    for number in range(6):
        (skyrl / "infra.log").write_text(f"{number}" * 10_000)
        keeper = make(limits=KeptLogLimits(earlier_bytes=35_000))  # the machine's logs have some hundred bytes
        keeper.begin(1)
        keeper.close()

    assert sorted({name.partition("/")[0] for name in kept(tmp_path / "kept")}) == ["1.3", "1.4", "1.5", "1.6"]


def test_search_is_bounded(make: Make, skyrl: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with more files than are looked at is kept in part, and files that are not seen are not forgotten."""
    monkeypatch.setattr(log_sources, "MAX_ENTRIES", 30)
    for number in range(100):
        (skyrl / f"{number}").write_text("text\n")
    keeper = make()
    keeper.begin(1)
    keeper.collect()
    keeper.collect()
    keeper.close()

    assert list(kept(tmp_path / "kept").values()) == [b"text\n"] * 30


def test_shared_folder_has_logs_of_others(make: Make, skyrl: Path, tmp_path: Path) -> None:
    """In a /tmp that other runs use, only files count that a process of this run has opened."""
    (skyrl / "of-another-run.log").write_text("private\n")
    own = skyrl / "infra.log"
    writer = subprocess.Popen(["sh", "-c", 'exec >> "$0"; echo own; read x', str(own)], stdin=subprocess.PIPE)
    try:
        keeper = make(RankConfig(shares_tmp=True))
        keeper.begin(1)
        while not kept(tmp_path / "kept"):  # until the shell has printed
            assert writer.poll() is None
            keeper.collect()
    finally:
        writer.communicate(b"\n")
    with own.open("a") as file:
        file.write("the end\n")
    keeper.close()

    assert kept(tmp_path / "kept") == {"1/skyrl-logs/infra.log": b"own\nthe end\n"}


def test_commits_follow_an_interval(make: Make, skyrl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder is committed while logs grow, with a file open, and not while nothing changes."""
    monkeypatch.setattr(log_keeper, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(log_keeper, "FIRST_COMMIT_INTERVAL", 0.02)
    monkeypatch.setattr(log_keeper, "COMMIT_INTERVAL", 0.02)
    commits: list[float] = []
    keeper = make(commit=lambda: commits.append(time.monotonic()))
    keeper.begin(1)
    for number in range(3):
        seen = len(commits)
        with (skyrl / "infra.log").open("a") as file:
            file.write(f"line {number}\n")
        while len(commits) == seen:
            time.sleep(0.005)  # a commit has no event here
    keeper.close()
    after = len(commits)

    assert after <= 4  # the first one may precede the first line


def test_full_disk_ends_nothing(make: Make, skyrl: Path, tmp_path: Path, notes: list[str]) -> None:
    """A log that cannot be written is reported in the log of the supervisor; others are kept."""
    keeper = make()
    start = keeper.begin(1)
    (start / "skyrl-logs" / "a").mkdir(parents=True)
    (skyrl / "a").write_text("text\n")
    (skyrl / "b").write_text("text\n")
    keeper.close()

    assert kept(tmp_path / "kept") == {"1/skyrl-logs/b": b"text\n"}
    assert notes == ["a log could not be kept: skyrl-logs/a: Is a directory"]


def test_machine_is_asked_after_a_failure(
    make: Make, ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nvidia-smi prints is kept masked, once for each attempt, and the counters of the memory at begin and end."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "GPU 0 s3cret-value" >> "{tmp_path}/calls"; cat "{tmp_path}/calls"; exit 9\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    keeper = make()
    start = keeper.begin(1)
    assert not (start / "machine" / "nvidia-smi.txt").exists()
    keeper.record_failure()
    keeper.record_failure()
    keeper.close()

    report = (start / "machine" / "nvidia-smi.txt").read_text()
    assert report == "GPU 0 ********\nnvidia-smi exited with code 9\n"
    if sys.platform == "linux" and (start / "machine" / "memory.jsonl").exists():
        lines = [json.loads(line) for line in (start / "machine" / "memory.jsonl").read_text().splitlines()]
        assert all({"time", "peak_bytes"} & line.keys() for line in lines)
