"""Many runs: retries in one run, map over commands, and runs found and made again."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RunState, SpecError, runs

Make = Callable[..., Launcher]


def test_a_retry_is_the_same_run_with_a_line_between(launcher: Make) -> None:
    output = io.BytesIO()

    result = launcher(retries=2).run(
        'echo "try $SKYRL_ATTEMPT"; exit $((3 - SKYRL_ATTEMPT))', output=output, quiet=True
    )

    lines = output.getvalue().decode().splitlines()
    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 3)
    assert [line for line in lines if line.startswith("try")] == ["try 1", "try 2", "try 3"]
    assert lines[1] == "skyrl-modal | attempt 1 ended with exit code 2; starting again"


def test_retries_stop_where_they_are_of_no_use(launcher: Make) -> None:
    only_137 = launcher(retries=5, should_retry=lambda code: code == 137)

    first = only_137.run("exit 2", quiet=True)
    second = only_137.run('[ "$SKYRL_ATTEMPT" = 1 ] && kill -9 $$; exit 3', quiet=True)

    assert (first.returncode, first.attempts) == (2, 1)
    assert (second.returncode, second.attempts) == (3, 2)


def test_a_timeout_counts_for_each_attempt(launcher: Make) -> None:
    result = launcher(retries=1, timeout=1, grace=1).run('[ "$SKYRL_ATTEMPT" = 2 ] || sleep 600', quiet=True)

    assert (result.state, result.attempts, result.detail) == (RunState.SUCCEEDED, 2, "")


def test_map_gives_results_in_order_and_goes_on_when_one_fails(
    launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    made = launcher()

    results = made.map(["sleep 0.5; echo a; exit 1", ["sh", "-c", "exit 2"], "echo c"], max_parallel=2)

    assert [result.returncode for result in results] == [1, 2, 0]
    assert len({result.run_id for result in results}) == 3
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "sleep 0.5; echo a; exit 1: failed" in captured.err


def test_map_refuses_what_it_cannot_do_before_anything_starts(launcher: Make) -> None:
    with pytest.raises(SpecError, match="command=''"):
        launcher().map(["true", ""])
    with pytest.raises(SpecError, match="max_parallel=0"):
        launcher().map(["true"], max_parallel=0)
    with pytest.raises(SpecError, match="names="):
        launcher().map(["true"], names=["a", "b"])
    assert launcher().map([]) == []


def test_ctrl_c_in_map_ends_what_runs_and_starts_no_more(launcher: Make, tmp_path: Path) -> None:
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
    for line in process.stderr:
        if "first: running" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT
    names = {Path(entry.path).name for entry in made.ls("/root/data")}
    assert "saved" in names
    assert "never" not in names


def test_runs_are_listed_and_made_again(launcher: Make, checkout: Path) -> None:
    made = launcher(timeout="20m", env={"A": "1"}, retries=1, secrets=[])
    result = made.run("echo $A; exit 0", quiet=True)

    assert result.run_id in [run.id for run in runs()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, command = Launcher.from_run(result.run_id)
    assert command == "echo $A; exit 0"
    assert (again.timeout, again.env, again.retries, again.backend) == (1200, {"A": "1"}, 1, made.backend)
    assert again.volumes == made.volumes
    assert again.run(command, quiet=True).returncode == 0

    (checkout / "train.py").write_text("print('edited')\n")
    with pytest.warns(UserWarning, match="are not the ones that ran"):
        Launcher.from_run(result.run_id)
