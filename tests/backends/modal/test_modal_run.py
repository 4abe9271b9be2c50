"""Tests of ``skyrl_modal.modal_run`` with the command ``modal run``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal import Run
from skyrl_modal.modal_run import command_option
from tests.support.loopback import LoopbackModal
from tests.support.small_trainer import SCRIPT as TRAINER_SCRIPT
from tests.support.small_trainer import add_to_checkout

SCRIPT = """
import sys
from skyrl_modal import Launcher
from skyrl_modal.modal_run import ModalRun

runner = ModalRun(Launcher(ray=None, gpu=None))
app = runner.app

@app.local_entrypoint()
def main(command: str) -> None:
    sys.exit(runner.run(command).returncode)
"""


def modal_run(
    server: LoopbackModal, checkout: Path, script: Path, command: str, source: str = SCRIPT
) -> subprocess.CompletedProcess[str]:
    """Run a command with ``modal run``."""
    script.write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "modal", "run", str(script), "--command", command],
        env={**os.environ, **server.env(), "SKYRL_REPO_ROOT": str(checkout)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_scripts_of_the_command_are_checked(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """The warnings about the command that is run, and about its scripts, are reported once, before it starts."""
    (checkout / "stop.sh").write_text("exit 5\nray stop\n")

    done = modal_run(server, checkout, tmp_path / "main.py", "bash stop.sh")

    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stderr.count("stop.sh calls `ray stop`") == 1
    assert "the command calls" not in done.stderr
    assert len(server.function_calls) == 1


def test_command_is_planned_before_the_app_starts(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """A command that is invalid is refused before anything is built or uploaded."""
    (checkout / ".env").write_text("KEY_OF_TEST=s3cret-value\n")
    script = SCRIPT.replace("gpu=None", 'gpu=None, secrets=["KEY_OF_TEST"]')

    done = modal_run(server, checkout, tmp_path / "main.py", "echo s3cret-value", script)

    assert done.returncode != 0
    assert "KEY_OF_TEST" in done.stdout + done.stderr
    assert server.apps == []


def test_other_command_of_the_entrypoint_is_planned(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """A command that the entrypoint composes itself is planned too, before the function is called."""
    (checkout / "stop.sh").write_text("exit 5\nray stop\n")
    script = SCRIPT.replace("runner.run(command)", 'runner.run(f"bash {command}")')

    done = modal_run(server, checkout, tmp_path / "main.py", "stop.sh", script)

    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stderr.count("stop.sh calls `ray stop`") == 1


def test_other_command_is_continued(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """With resume="auto", the positions of arguments are those of the command that is run."""
    add_to_checkout(checkout)
    source = SCRIPT.replace("gpu=None", 'gpu=None, resume="auto", retries=1, env={"FAULT": "cut pointer"}')
    source = source.replace("runner.run(command)", "runner.run(command + ' trainer.run_name=x | cat')")

    done = modal_run(server, checkout, tmp_path / "main.py", f"set -o pipefail; bash {TRAINER_SCRIPT}", source)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "begins after step 4" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["modal", "run", "main.py", "--command", "a b"], "a b"),
        (["modal", "run", "--detach", "main.py::main", "--command=a=b"], "a=b"),
        (["modal", "run", "main.py"], None),
        (["modal", "run", "main.py", "--command"], None),
    ],
)
def test_command_option(arguments: list[str], command: str | None) -> None:
    """The command is found in both forms of an option."""
    assert command_option(arguments) == command


def test_empty_command_is_refused(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """An empty command is an error, and the function is not called."""
    done = modal_run(server, checkout, tmp_path / "main.py", " ")

    assert done.returncode != 0
    assert "pass a shell command" in done.stdout + done.stderr
    assert server.function_calls == []


def test_long_output_is_reported_as_maybe_cut(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """After a long output, the last message states that it may be cut, and which command prints all of it."""
    short = modal_run(server, checkout, tmp_path / "main.py", "seq 100")
    long = modal_run(server, checkout, tmp_path / "main.py", "seq 300000")

    assert (short.returncode, long.returncode) == (0, 0), short.stderr + long.stderr
    assert "skyrl-modal logs" not in short.stderr
    last = long.stderr.splitlines()[-1]
    run_id = last.split("`skyrl-modal logs ")[1].split("`")[0]
    assert "warning: `modal run` may have displayed only a part of the output" in last
    assert list(Run.attach(run_id).logs(tail=1)) == ["300000"]


@pytest.mark.slow
def test_fifty_megabytes_are_displayed(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """`modal run` displays 50 MB completely: it has more time for it than Modal's client has by default."""
    done = modal_run(server, checkout, tmp_path / "main.py", "seq -f %0100.0f 500000")

    lines = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert (len(lines), int(lines[-1])) == (500_000, 500_000)


def test_example_ends_as_a_completed_app(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """The example's app is completed if the command succeeds, and the exit code of a failure is kept."""
    source = (
        (Path(__file__).parents[3] / "examples" / "main.py")
        .read_text()
        .replace("Launcher()", "Launcher(ray=None, gpu=None)")
    )

    done = modal_run(server, checkout, tmp_path / "main.py", "true", source)
    failed = modal_run(server, checkout, tmp_path / "main.py", "exit 5", source)

    assert (done.returncode, failed.returncode) == (0, 5), done.stderr + failed.stderr
    assert "SystemExit" not in done.stdout + done.stderr
