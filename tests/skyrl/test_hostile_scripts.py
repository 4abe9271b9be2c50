"""Tests of scripts that exceed the limits of the sandbox, or attempt to leave it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from skyrl_modal.skyrl.resolution import sandbox
from skyrl_modal.skyrl.resolution.records import EndOfExecution, Resolution

#: Seconds after which a test fails. A quiet machine needs less than 3 s.
LIMIT = 15.0
START = "uv run -m skyrl.train.main_sft seed=1\n"

HOSTILE = {
    "fork bomb": ("f() { f | f & }; f; while true; do :; done", (EndOfExecution.LIMIT, EndOfExecution.TIMEOUT)),
    "memory": (
        'grow() { local x; x=$(head -c 400000000 /dev/zero | tr "\\0" x); /usr/bin/sleep 60; }\n'
        "for i in $(seq 25); do grow & done; wait; /usr/bin/sleep 60",
        (EndOfExecution.LIMIT, EndOfExecution.TIMEOUT),
    ),
    "one process with 10 GB": (
        "x=$(head -c 10000000000 /dev/zero | tr '\\0' x); /usr/bin/sleep 60",
        (EndOfExecution.LIMIT, EndOfExecution.TIMEOUT),
    ),
    "writes": (
        "i=0; while true; do for d in . /tmp /dev/shm /root /; do head -c 50000000 /dev/zero >$d/f$i; done; "
        "i=$((i + 1)); done",
        (EndOfExecution.LIMIT, EndOfExecution.TIMEOUT),
    ),
    "never ends": (
        'trap "" TERM INT HUP QUIT; while true; do /usr/bin/sleep 100; done',
        (EndOfExecution.TIMEOUT,),
    ),
    "endless calls": ("while true; do uv run -m skyrl.train.main_sft seed=2; done", (EndOfExecution.TIMEOUT,)),
    "daemon": (
        "setsid nohup bash -c 'trap \"\" TERM HUP; while true; do /usr/bin/sleep 100; done' >/dev/null 2>&1 &",
        (EndOfExecution.EXITED,),
    ),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return an empty checkout."""
    root = tmp_path / "SkyRL"
    (root / "skyrl-gym").mkdir(parents=True)
    return root


def resolve(checkout: Path, text: str) -> tuple[Resolution, str]:
    """Return what a script starts, and a text that the command lines of its processes contain."""
    name = f"hostile-{uuid.uuid4().hex}.sh"
    (checkout / name).write_text(text)
    return Launcher(checkout=checkout, backend="modal", gpu=None).plan(f"bash {name}").resolution, name


def processes_with(text: str) -> list[str]:
    """Return the command lines of processes that contain a text."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            found += [line] if text in line else []
    return found


def shared_memory_bytes() -> int:
    """Return the size of all files in memory."""
    [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_script_is_contained(checkout: Path, name: str) -> None:
    """A script that exceeds a limit is ended with all its processes, and its first start is reported."""
    text, ends = HOSTILE[name]
    memory = shared_memory_bytes()
    began = time.monotonic()

    resolution, mark = resolve(checkout, START + text)

    assert time.monotonic() - began < LIMIT
    assert resolution.recording.end in ends
    assert [start.overrides["seed"] for start in resolution.starts[:1]] == ["1"]
    assert len(resolution.recording.calls) <= 500
    assert processes_with(mark) == []
    assert shared_memory_bytes() - memory < 500 << 20
    assert {path.name for path in checkout.iterdir()} == {"skyrl-gym", mark}


def test_time_of_a_script_is_limited() -> None:
    """The command is killed after 2 s at most, so that a hostile one is reported within 3 s."""
    assert sandbox.TIMEOUT <= 2.0


def test_files_outside_cannot_be_read_or_written(checkout: Path, tmp_path: Path) -> None:
    """A script sees neither other files of this machine nor those of its user, and its writes have no effect."""
    secret, target = tmp_path / "id_rsa", tmp_path / "target"
    secret.write_text("PRIVATE")
    home = Path.home()
    (checkout / "kept.txt").write_text("old")
    (checkout / "link").symlink_to(secret)
    script = f"""
        mkdir -p {tmp_path}; echo x >{target}; echo new >kept.txt; echo x >created; rm -f link2
        seen="$(cat {secret} link /etc/shadow /proc/1/root{secret} {home}/.ssh/* 2>/dev/null; ls -A /home)"
        python -m skyrl.train.main_sft seed="$seen" num_workers="$(cat kept.txt)" model="$(env | grep -c XDG_)"
    """

    resolution, _ = resolve(checkout, script)

    assert resolution.starts[0].overrides == {"seed": "", "num_workers": "new", "model": "0"}
    assert not target.exists()
    assert (checkout / "kept.txt").read_text() == "old"
    assert not (checkout / "created").exists()


def test_network_is_not_reachable(checkout: Path) -> None:
    """A script cannot connect to this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.1)

        resolution, _ = resolve(checkout, f": skyrl uv; exec 3<>/dev/tcp/127.0.0.1/{port}")

        with pytest.raises(TimeoutError):
            server.accept()
    assert resolution.recording.exit_code is not None


def test_forged_records_do_no_harm(checkout: Path) -> None:
    """A script that writes to the file of calls adds calls at most, and cannot change how its end is reported."""
    script = """
        calls=/run/skyrl_modal/calls
        printf '%s\\n' 'x-1 C python' 'x-1 A -m' 'x-1 A skyrl.train.main_sft' 'x-1 X ' 'x-2 C a' >>$calls
        head -c 3000000 /dev/zero >>$calls; echo >>$calls
        for descriptor in 3 4 5 6 7 8 9; do echo '{"exit-code": 0}' >&$descriptor; done 2>/dev/null
        uv run -m skyrl.train.main_sft seed=1
        exit 9
    """

    resolution, _ = resolve(checkout, script)

    assert [start.overrides for start in resolution.starts] == [{}, {"seed": "1"}]
    assert resolution.recording.exit_code == 9


def test_special_files_do_not_block(checkout: Path) -> None:
    """Named pipes, links in a circle and unreadable files of a checkout do not block or end a resolution."""
    os.mkfifo(checkout / "pipe.sh")
    (checkout / "circle").symlink_to("circle")
    (checkout / "large.sh").write_bytes(b"#" * 3_000_000)

    resolution, _ = resolve(checkout, 'uv run -m skyrl.train.main_sft seed="$(wc -c <large.sh)"')

    assert resolution.starts[0].overrides == {"seed": "3000000"}
