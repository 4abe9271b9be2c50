"""Tests of the command line: start, list, follow, wait for and cancel runs; exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Run
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex
from skyrl_modal.views.text import escape_controls

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty index and without an account."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)

    return call


def listed_runs(skyrl: Command) -> list[dict[str, Any]]:
    """Return the runs that `ps --json` lists."""
    found: list[dict[str, Any]] = json.loads(skyrl("ps", "--json").stdout)
    return found


def make_record(run_id: str, backend: str, **handle: str) -> IndexRecord:
    """Return a record of a run on a backend."""
    created_at = "2020-01-01T00:00:00+00:00"
    job = Job(run_id=run_id, command="python train.py", workdir="/", run_folder="/", created_at=created_at)
    return IndexRecord(job=job, backend=backend, handle=handle)


def test_run_is_submitted_and_followed(skyrl: Command) -> None:
    """A submitted run is attached to, waited for, listed, and its log is read."""
    submitted = skyrl(
        "submit", "--no-ray", "--name", "first", "--tag", "a", "--tag", "b", "echo one; sleep 0.5; exit 3"
    )
    run_id = submitted.stdout.strip()

    followed = skyrl("attach", run_id)
    assert (followed.returncode, followed.stdout) == (3, "one\n")
    assert skyrl("wait", run_id).returncode == 3
    assert skyrl("logs", "--tail", "1", run_id).stdout == "one\n"
    assert skyrl("logs", "-f", run_id).stdout == "one\n"
    [one] = listed_runs(skyrl)
    assert (one["run_id"], one["state"], one["returncode"]) == (run_id, "failed", 3)
    assert (one["backend"], one["name"], one["tags"]) == ("local", "first", ["a", "b"])


def test_run_is_cancelled(skyrl: Command) -> None:
    """A cancelled run ends with the exit code of its signal. Cancelling it again does nothing."""
    run_id = skyrl("submit", "--no-ray", "sleep 600").stdout.strip()

    assert skyrl("cancel", run_id).returncode == 0
    assert skyrl("wait", run_id).returncode in (130, 143)
    assert skyrl("cancel", run_id).returncode == 0


def test_unreachable_runs_do_not_hide_others(skyrl: Command) -> None:
    """Runs whose backend is not available, or not installed, are listed as unknown with the reason."""
    skyrl("run", "--no-ray", "-q", "true")
    RunIndex().add(make_record("20200101-000000-aaaaaa", "modal", call_id="fc-123"))
    RunIndex().add(make_record("20200101-000000-bbbbbb", "mine", id="7"))

    listed = skyrl("ps")

    assert listed.returncode == 0
    assert [line.split()[2] for line in listed.stdout.splitlines()[1:]] == ["succeeded", "unknown", "unknown"]
    assert [(one["state"], one["backend"]) for one in listed_runs(skyrl)] == [
        ("succeeded", "local"),
        ("unknown", "mine"),
        ("unknown", "modal"),
    ]
    assert "modal setup" in listed.stderr
    assert "backend='mine'" in listed.stderr


@pytest.mark.parametrize("module", ["skyrl_modal.cli.process", "skyrl_modal.cli.commands", "skyrl_modal.launching"])
def test_interrupt_while_modules_are_loaded(skyrl: Command, checkout: Path, module: str) -> None:
    """Ctrl-C while the program loads its modules ends it with 130, without a traceback. Nothing is started."""
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['skyrl-modal', 'run', '--no-ray', 'true']\n"
        "from skyrl_modal.cli import main\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=False, timeout=100
    )

    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
    assert listed_runs(skyrl) == []


def test_files_are_pushed_listed_and_pulled(skyrl: Command, tmp_path: Path) -> None:
    """A file is copied to a volume, listed, and copied back. A missing one is an error of the launcher."""
    (tmp_path / "x").write_text("content")
    volume = ("--volume", f"/root/data={tmp_path.name}")

    assert skyrl("push", *volume, str(tmp_path / "x"), "/root/data/folder/x").returncode == 0
    assert skyrl("ls", *volume, "/root/data/folder").stdout.split()[-1] == "/root/data/folder/x"
    assert skyrl("pull", *volume, "/root/data/folder/x", str(tmp_path / "y")).returncode == 0
    assert (tmp_path / "y").read_text() == "content"
    assert skyrl("pull", *volume, "/root/data/none").returncode == 125


def test_plan_shows_files(skyrl: Command) -> None:
    """A plan lists the files if it is asked to, and starts nothing."""
    assert "skyrl-gym/skyrl_gym/__init__.py" not in skyrl("plan", "python train.py").stdout
    plan = skyrl("plan", "--files", "python train.py")

    assert plan.returncode == 0
    assert "skyrl-gym/skyrl_gym/__init__.py" in plan.stdout
    assert listed_runs(skyrl) == []


@pytest.mark.parametrize("command", ["logs", "attach", "cancel", "wait"])
def test_unknown_run_is_an_error(skyrl: Command, command: str) -> None:
    """A command on an unknown run prints one message and exits with 125."""
    done = skyrl(command, "none")

    assert done.returncode == 125
    assert done.stderr.startswith("skyrl-modal: no run has the id 'none'")


@pytest.mark.parametrize(
    ("arguments", "returncode"),
    [
        (("run", "--timeout", "soon", "true"), 125),
        (("run", "--gpu", "A100:0", "true"), 125),
        (("run", "--backend", "mine", "true"), 125),
        (("run", "--name", "two parts", "true"), 125),
        (("run", "--workdir", "nowhere", "true"), 125),
        (("run", "--checkout", "/", "true"), 125),
        (("run", "--secret", "NO_SUCH_VARIABLE", "true"), 125),
        (("run", "--secret", "PATH", "--secret-if-set", "NO_SUCH_VARIABLE", "exit 5"), 5),
        (("run", "--secret-if-set", "not a name", "true"), 125),
        (("run", "--backend", "modal", "true"), 125),
        (("plan", ""), 125),
        (("push", "/no/such/file", "/root/data/x"), 125),
        (("ls", "/elsewhere"), 125),
        (("run",), 2),
        (("run", "--no-such-option", "true"), 2),
        (("run", "--nodes", "many", "true"), 2),
        (("run", "--env", "without-value", "true"), 2),
        (("no-such-command",), 2),
    ],
)
def test_error_exit_codes(skyrl: Command, arguments: tuple[str, ...], returncode: int) -> None:
    """Errors of the launcher exit with 125, invalid values included, and usage errors of click with 2."""
    done = skyrl(*arguments)

    assert done.returncode == returncode
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_warning_about_an_option_is_a_message(skyrl: Command, checkout: Path) -> None:
    """An unknown GPU type is reported as a message of the command line, and the run continues."""
    done = skyrl("plan", "--backend", "local", "--checkout", str(checkout), "--gpu", "A1000", "true")

    assert done.returncode == 0
    warning = "A1000:1 is requested, and A1000 is not a known GPU type. Did you mean A100"
    assert f"skyrl-modal | warning: {warning}" in done.stderr
    assert "UserWarning" not in done.stderr


def test_interrupt_exits_with_130(skyrl: Command, checkout: Path) -> None:
    """Ctrl-C stops the run, and the command line exits with 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "skyrl_modal", "run", "--no-ray", "echo up; sleep 600"],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert listed_runs(skyrl)[0]["state"] == "cancelled"


def test_closed_reader_exits_with_141(skyrl: Command, checkout: Path) -> None:
    """A reader that closes the output stops the run, and the command line exits with 141."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "skyrl_modal", "run", "--no-ray", "-q", "yes"], cwd=checkout, stdout=writer
    )
    os.close(writer)
    os.read(reader, 100)
    os.close(reader)

    assert process.wait(60) == 141
    assert listed_runs(skyrl)[0]["state"] == "cancelled"


def test_doctor_checks_every_backend(skyrl: Command) -> None:
    """The doctor checks Python, the checkout and both backends."""
    done = skyrl("doctor")

    subjects = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"Python", "checkout", "modal", "ray"} <= set(subjects)
    assert done.returncode == 0


def test_controls_in_records_are_escaped(skyrl: Command) -> None:
    """Names, tags and commands with control characters are listed as escape sequences, in one line."""
    record = make_record("20200101-000000-aaaaaa", "mine\x1b[2J", id="7")
    job = replace(record.job, command="echo \x1b]0;title\x07\nsecond", name="a\rb", tags=("\u202etag",))
    RunIndex().add(replace(record, job=job))
    RunIndex().add(replace(record, job=replace(job, run_id="20200101-000000-bbbbbb", command=" \n ")))

    listed = skyrl("ps")

    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) == 3
    assert "echo \\x1b]0;title\\x07" in listed.stdout
    assert escape_controls(listed.stdout + listed.stderr, multiline=True) == listed.stdout + listed.stderr


def test_logs_keep_colors(skyrl: Command) -> None:
    """The command's own output is printed with its control sequences, also to a pipe."""
    run_id = skyrl("submit", "--no-ray", "printf '\\033[31mred\\033[0m\\n'").stdout.strip()
    skyrl("wait", run_id)

    assert skyrl("logs", run_id).stdout == skyrl("attach", run_id).stdout == "\x1b[31mred\x1b[0m\n"


def test_damaged_index_entries_affect_their_runs_only(skyrl: Command, tmp_path: Path) -> None:
    """Each damaged entry of the index is skipped with a warning, and the other runs are listed."""
    RunIndex().add(make_record("20200101-000000-aaaaaa", "mine", id="7"))
    [entry] = (tmp_path / "state").rglob("*.json")
    damaged = [b"", b"[]", b"null", b"[" * 100_000, b"{}", b" " * (5 << 20)]
    for number, record in enumerate(damaged):
        entry.with_name(f"20200101-000000-damaged{number}.json").write_bytes(record)
    renamed = entry.with_name("20200101-000000-renamed.json")
    renamed.write_bytes(entry.read_bytes())
    entry.with_name("20200101-000000-link.json").symlink_to("/etc/passwd")

    listed = skyrl("ps")

    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["RUN", "20200101-000000-aaaaaa"]
    assert listed.stderr.count("skipping a record") == len(damaged) + 2
    for number in range(len(damaged)):
        with pytest.raises(RecordError):
            Run.attach(f"20200101-000000-damaged{number}")
    assert skyrl("wait", "20200101-000000-damaged0").returncode == 125
