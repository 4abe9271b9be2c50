"""Tests of several attempts and runs: retries, map, the list of runs, and repeating a run."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import skyrl_modal
from skyrl_modal import Launcher, Run, RunState, SpecError, runs
from skyrl_modal.protocol.log_lines import LINE_PREFIX
from skyrl_modal.protocol.state import FailureCause
from tests.conftest import MakeLauncher


def test_retry_continues_the_same_run(launcher: MakeLauncher) -> None:
    """A further attempt is a part of the same run and output, with one launcher message between the attempts."""
    output = io.BytesIO()

    result = launcher(retries=2).run(
        'echo "try $SKYRL_ATTEMPT"; exit $((3 - SKYRL_ATTEMPT))', output=output, quiet=True
    )

    lines = output.getvalue().decode().splitlines()
    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 3)
    assert [line for line in lines if line.startswith("try")] == ["try 1", "try 2", "try 3"]
    assert [line.startswith(LINE_PREFIX) for line in lines] == [False, True, False, True, False]


def test_should_retry_decides(launcher: MakeLauncher) -> None:
    """A further attempt is made only after an exit code that should_retry accepts."""
    only_137 = launcher(retries=5, should_retry=lambda code: code == 137)

    first = only_137.run("exit 2", quiet=True)
    second = only_137.run('[ "$SKYRL_ATTEMPT" = 1 ] && kill -9 $$; exit 3', quiet=True)

    assert (first.returncode, first.attempts) == (2, 1)
    assert (second.returncode, second.attempts) == (3, 2)


def test_timeout_limits_each_attempt(launcher: MakeLauncher) -> None:
    """A run whose first attempt times out succeeds with the second one, without a cause."""
    result = launcher(retries=1, timeout=1, grace=1).run('[ "$SKYRL_ATTEMPT" = 2 ] || sleep 600', quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert (result.cause, result.detail) == (None, "")


def test_map_returns_results_in_order(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """A failure does not stop the other commands, and the results have the order of the commands."""
    results = launcher().map(["sleep 0.5; echo a; exit 1", ["sh", "-c", "exit 2"], "echo c"], max_parallel=2)

    assert [result.returncode for result in results] == [1, 2, 0]
    assert len({result.run_id for result in results}) == 3
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "sleep 0.5; echo a; exit 1: failed" in captured.err


def test_map_with_several_launchers(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """Each command runs as its launcher declares. Equal launchers share their files, also if they change meanwhile."""
    first, second = launcher(env={"A": "1"}, name="first"), launcher(env={"A": "2"}, workdir="docs")
    assert first.checkout is not None
    (first.checkout / "docs").mkdir()
    page = first.checkout / "docs" / "page"
    page.write_text("before")
    read = "grep -q before docs/page && exit $((A * 10))"

    results = skyrl_modal.map(
        [
            (first, read),
            (second, ["sh", "-c", 'basename "$PWD" | grep -qx docs && exit $((A * 20))']),
            (launcher(env={"A": "1"}, name="first"), read),
        ],
        max_parallel=1,
        on_event=lambda run, event: page.write_text("after"),
    )

    assert page.read_text() == "after"

    assert [result.returncode for result in results] == [10, 40, 10]
    rows = capfd.readouterr().err
    assert f"first: {read}: failed" in rows


def test_map_checks_all_launchers(launcher: MakeLauncher) -> None:
    """Nothing starts if one of the launchers, or a pair, is not valid. Without pairs, there are no results."""
    events: list[object] = []

    def map_both(second: object) -> None:
        skyrl_modal.map([(launcher(), "true"), second], on_event=lambda *event: events.append(event))  # type: ignore[list-item]

    with pytest.raises(SpecError, match="workdir='none'"):
        map_both((launcher(workdir="none"), "true"))
    with pytest.raises(SpecError, match="command=''"):
        map_both((launcher(), ""))
    for pair in ("true", ("true", launcher()), (launcher(), "true", 1)):
        with pytest.raises(SpecError, match="pass pairs of a launcher and a command"):
            map_both(pair)
    assert events == []
    assert skyrl_modal.map([]) == []


def test_map_refuses_invalid_arguments(launcher: MakeLauncher) -> None:
    """Invalid arguments raise SpecError before anything starts. Without commands, there are no results."""
    with pytest.raises(SpecError, match="command=''"):
        launcher().map(["true", ""])
    with pytest.raises(SpecError, match="max_parallel=0"):
        launcher().map(["true"], max_parallel=0)
    with pytest.raises(SpecError, match="names="):
        launcher().map(["true"], names=["a", "b"])
    assert launcher().map([]) == []


def test_map_continues_if_a_run_cannot_start(launcher: MakeLauncher, checkout: Path) -> None:
    """A command that cannot be started has the exit code 125, and the cause NOT_STARTED."""
    made = launcher(secrets=["NO_SUCH_KEY"])

    [result] = made.map(["true"], quiet=True)

    assert (result.returncode, result.state, result.cause) == (125, RunState.FAILED, FailureCause.NOT_STARTED)
    assert "NO_SUCH_KEY" in result.detail


def test_interrupt_ends_map(launcher: MakeLauncher, tmp_path: Path) -> None:
    """Ctrl-C stops the running commands with their grace period, and starts no other."""
    made = launcher()
    script = (
        "from skyrl_modal import Launcher, VolumeSpec\n"
        f"launcher = Launcher(backend={made.backend!r}, checkout={str(made.checkout)!r}, ray=None, gpu=None,\n"
        f"                    volumes=[VolumeSpec(name={made.volumes[0].name!r})])\n"
        "launcher.map(['trap \"echo saved > /root/data/saved; exit 0\" INT TERM; echo up; sleep 600 & wait',\n"
        "              'echo never > /root/data/never'], max_parallel=1, names=['first', 'second'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "first: running" in line)
    run_id = line.partition("first: running ")[2].split()[0]
    assert next(iter(Run.attach(run_id).logs(follow=True))) == "up"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT
    names = {Path(entry.path).name for entry in made.ls("/root/data")}
    assert "saved" in names
    assert "never" not in names


def test_run_is_listed_and_repeated(launcher: MakeLauncher, checkout: Path) -> None:
    """from_run returns an equal launcher, and warns if the files have changed since."""
    made = launcher(timeout="20m", env={"A": "1"}, retries=1, secrets=[], name="first", tags=["a"])
    result = made.run("echo $A; exit 0", quiet=True)

    [listed] = [run for run in runs() if run.id == result.run_id]
    assert (listed.job.name, listed.job.tags) == ("first", ("a",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, command = Launcher.from_run(result.run_id)
    assert (again, command) == (made, "echo $A; exit 0")
    assert again.run(command, quiet=True).returncode == 0

    (checkout / "train.py").write_text("print('edited')\n")
    with pytest.warns(UserWarning, match="differ from those that the run used"):
        Launcher.from_run(result.run_id)
