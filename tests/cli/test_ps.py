"""Tests of ``skyrl-modal ps``: filters, JSON, terminals, volumes, and completion of ids."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex
from tests.support.loopback import LoopbackModal

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty index and without an account."""
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(
            command,
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(env or {})},
            timeout=100,
        )

    return call


def add_record(backend: str, age: timedelta, tags: tuple[str, ...] = ()) -> str:
    """Add a record of a run that was created some time ago, and return its id."""
    created = datetime.now(UTC) - age
    run_id = f"{created:%Y%m%d-%H%M%S}-{len(tags):06x}"
    job = Job(
        run_id=run_id, command="true", workdir="/", run_folder="/", created_at=created.isoformat(), tags=tags, nodes=2
    )
    spec = {"gpu": ["H100:8", "A100:8"]}
    RunIndex().add(IndexRecord(job=job, backend=backend, handle={"call_id": "fc-1"}, spec=spec))
    return run_id


def listed(skyrl: Command, *arguments: str) -> list[dict[str, Any]]:
    """Return what `ps --json` prints, which has nothing else on standard output."""
    done = skyrl("ps", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_facts_of_a_run(skyrl: Command) -> None:
    """The list has state, exit code, times and command, with the names of Run and RunResult, the newest run first."""
    skyrl("run", "-q", "--no-ray", "--name", "first", "--tag", "a", "exit 3")
    skyrl("run", "-q", "--no-ray", "true")

    second, first = listed(skyrl)

    assert (second["state"], second["returncode"], second["cause"]) == ("succeeded", 0, None)
    assert (first["name"], first["tags"], first["command"]) == ("first", ["a"], "exit 3")
    assert (first["state"], first["returncode"], first["cause"], first["attempts"]) == (
        "failed", 3, "command_failed", 1,
    )  # fmt: skip
    assert first["created_at"] <= first["started_at"] <= datetime.now(UTC).isoformat()
    assert 0 <= first["duration"] < 60
    header, _, row = skyrl("ps").stdout.splitlines()
    assert header.split() == ["RUN", "NAME", "STATE", "EXIT", "STARTED", "DURATION", "GPU", "NODES", "COST", "COMMAND"]
    assert row.split()[:4] == [first["run_id"], "first", "failed", "3"]
    assert row.endswith("exit 3")


def test_filters(skyrl: Command) -> None:
    """Runs are selected by state, tag, age, backend and number."""
    old = add_record("mine", timedelta(days=3), ("x", "y"))
    new = add_record("mine", timedelta(hours=1), ("x",))
    skyrl("run", "-q", "--no-ray", "true")
    own = listed(skyrl, "--limit", "1")[0]["run_id"]

    def ids(*arguments: str) -> list[str]:
        return [one["run_id"] for one in listed(skyrl, *arguments)]

    assert ids() == [own, new, old]
    assert ids("--state", "succeeded") == [own]
    assert ids("--state", "unknown", "--limit", "1") == [new]
    assert ids("--since", "2h") == [own, new]
    assert ids("--since", "2020-01-01") == [own, new, old]
    assert ids("--tag", "x", "--tag", "y") == [old]
    assert ids("--backend", "local") == [own]


def test_unreachable_backend_is_one_line(skyrl: Command) -> None:
    """A backend that cannot be reached is reported once, and its runs are listed with what their records have."""
    for hours in range(5):
        add_record("modal", timedelta(hours=hours + 1))

    done = skyrl("ps")

    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert "5 runs on modal" in done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[1:]] == ["unknown"] * 5
    assert "H100:8 or A100:8" in done.stdout
    assert {one["nodes"] for one in listed(skyrl)} == {2}


def test_server_that_does_not_answer_is_asked_once(skyrl: Command, tmp_path: Path) -> None:
    """With an account whose token is refused, one line is printed for all runs."""
    for hours in range(5):
        add_record("modal", timedelta(hours=hours + 1))
    with LoopbackModal(tmp_path / "server") as server:
        server.faults.revoke_token()
        done = skyrl("ps", env=dict(server.env()))

    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("time", ["yesterday", "-1h", "2026-13-01", ""])
def test_invalid_time(skyrl: Command, time: str) -> None:
    """A time that is neither a duration nor a date is refused."""
    done = skyrl("ps", "--since", time)

    assert done.returncode == 125
    assert done.stderr.startswith("skyrl-modal: --since")


def test_runs_of_a_volume(skyrl: Command, tmp_path: Path) -> None:
    """The runs on a volume are listed without this machine's records, and damaged ones are skipped with a warning."""
    skyrl("run", "-q", "--no-ray", "--volume", "/root/data=shared", "--name", "one", "exit 4")
    skyrl("run", "-q", "--no-ray", "--volume", "/root/data=shared", "true")
    runs_folder = next((tmp_path / "DATA").rglob("shared")) / ".skyrl_modal" / "runs"
    (runs_folder / "20200101-000000-aaaaaa").mkdir()
    (runs_folder / "20200101-000000-bbbbbb").mkdir()
    (runs_folder / "20200101-000000-bbbbbb" / "job.json").write_text('{"run_id": "../../x"}')
    environment = {"XDG_STATE_HOME": str(tmp_path / "other")}

    done = skyrl("ps", "--json", "--volume", "shared", env=environment)

    found = json.loads(done.stdout)
    assert [(one["name"], one["state"], one["returncode"]) for one in found] == [
        (None, "succeeded", 0),
        ("one", "failed", 4),
    ]
    assert done.stderr.count("skipping a run on the volume") == 2
    assert skyrl("ps", env=environment).stdout.splitlines()[1:] == []
    missing = skyrl("ps", "--volume", "none")
    assert missing.returncode == 125
    assert "none does not exist" in missing.stderr


def on_terminal(checkout: Path, columns: int, *arguments: str) -> list[str]:
    """Return the lines that a command prints on a terminal of some width, without colors."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "skyrl_modal", *arguments]
    process = subprocess.Popen(command, cwd=checkout, stdout=terminal, stderr=subprocess.DEVNULL)
    os.close(terminal)
    received = b""
    while True:
        try:
            data = os.read(controller, 1 << 16)
        except OSError:  # all other ends of the terminal are closed (EIO on Linux)
            break
        if not data:
            break
        received += data
    os.close(controller)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", received.decode()).splitlines()


@pytest.mark.parametrize("columns", [80, 200])
def test_list_fits_on_a_terminal(skyrl: Command, checkout: Path, columns: int) -> None:
    """Each run has one line that fits on the terminal, with its whole id."""
    skyrl("run", "-q", "--no-ray", f"true {'x' * 300}")

    header, row = on_terminal(checkout, columns, "ps")

    assert len(row) <= columns
    assert row.split()[0] == listed(skyrl)[0]["run_id"]
    assert "NAME" not in header.split()


def test_watch_needs_a_terminal(skyrl: Command) -> None:
    """On a pipe, --watch is a usage error."""
    assert skyrl("ps", "--watch").returncode == 2


def test_completion(skyrl: Command) -> None:
    """Scripts for the shells are printed; ids and names of runs are completed."""
    skyrl("run", "-q", "--no-ray", "--name", "baseline", "true")
    run_id = listed(skyrl)[0]["run_id"]

    for shell in ("bash", "zsh", "fish"):
        assert "_SKYRL_MODAL_COMPLETE" in skyrl("completion", shell).stdout

    def complete(text: str) -> list[str]:
        environment = {
            **os.environ,
            "_SKYRL_MODAL_COMPLETE": "bash_complete",
            "COMP_WORDS": f"skyrl-modal logs {text}",
            "COMP_CWORD": "2",
        }
        program = Path(sys.executable).with_name("skyrl-modal")
        return subprocess.run([program], env=environment, check=True, capture_output=True, text=True).stdout.split()

    assert complete("base") == ["plain,baseline"]
    assert complete(run_id[:8]) == [f"plain,{run_id}"]
    assert complete("lat") == ["plain,latest"]
