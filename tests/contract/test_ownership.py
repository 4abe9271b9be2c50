"""Who a run belongs to: what ends with its caller, and what outlives it. The caller is a process of its own here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunCancelled, RunNotFound, RunState, RunTimeout
from tests.support.commands import saving_command
from tests.support.processes import signal_other_thread

Make = Callable[..., Launcher]

CALLER = """
import sys
from skyrl_modal import Launcher, VolumeSpec
launcher = Launcher(backend={backend!r}, checkout={checkout!r}, volumes=[VolumeSpec(name={volume!r})], ray=None,
                    gpu=None, grace={grace})
try:
    result = launcher.run(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
print("ended", result.returncode)
"""


class Caller:
    """A process that calls ``Launcher.run``."""

    def __init__(self, made: Launcher, command: str, grace: float = 6) -> None:
        script = CALLER.format(
            backend=made.backend, checkout=str(made.checkout), volume=made.volumes[0].name, grace=grace
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, text: str) -> None:
        """Read standard output until a line is there."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == text:
                return
        pytest.fail(f"the caller ended before it said {text!r}: {self.process.communicate()}")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def run_id(self, err: str) -> str:
        return next(line.split()[3].rstrip(":") for line in err.splitlines() if "| run " in line)


@pytest.fixture
def call(launcher: Make) -> Iterator[Callable[..., Caller]]:
    started: list[Caller] = []

    def start(command: str, **options: float) -> Caller:
        started.append(Caller(launcher(), command, **options))
        return started[-1]

    yield start
    for caller in started:
        if caller.process.poll() is None:
            caller.process.kill()
        caller.process.communicate()


SAVES = saving_command(path="/root/data/saved")


def saved(made: Launcher, tmp_path: Path) -> str:
    return made.pull("/root/data/saved", tmp_path / "saved").read_text()


def test_ctrl_c_lets_the_command_save_and_reaches_the_caller(
    call: Callable[..., Caller], launcher: Make, tmp_path: Path
) -> None:
    caller = call(SAVES)
    caller.wait_for("up")

    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert code == -signal.SIGINT  # Python's own way to end at an uncaught KeyboardInterrupt
    assert out.splitlines() == ["saving", "interrupted"]
    assert "stopping the run" in err
    assert "cancelled, exit code 3" in err
    assert saved(launcher(), tmp_path) == "yes\n"


def test_ctrl_c_is_seen_also_where_the_main_thread_is_not_the_one_that_gets_it(call: Callable[..., Caller]) -> None:
    caller = call(SAVES)
    caller.wait_for("up")

    signal_other_thread(caller.process.pid, signal.SIGINT)
    _, out, err = caller.end()

    assert out.splitlines() == ["saving", "interrupted"]
    assert "cancelled, exit code 3" in err


def test_a_second_ctrl_c_ends_it_at_once(call: Callable[..., Caller]) -> None:
    caller = call("trap 'echo no' INT TERM; echo up; while :; do sleep 600 & wait; done", grace=500)
    caller.wait_for("up")

    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("no")
    caller.process.send_signal(signal.SIGINT)
    _, out, err = caller.end()

    assert out.splitlines()[-1] == "interrupted"
    assert "cancelled, exit code 137" in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ends_with_its_caller_and_may_save(
    call: Callable[..., Caller], launcher: Make, tmp_path: Path, number: int
) -> None:
    caller = call(SAVES)
    caller.wait_for("up")

    caller.process.send_signal(number)
    caller.process.wait()
    _, _, err = caller.end()
    result = Run.attach(caller.run_id(err)).wait(60)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 3)
    assert saved(launcher(), tmp_path) == "yes\n"


def test_a_submitted_run_outlives_its_caller_and_is_found_again(launcher: Make) -> None:
    made = launcher()
    script = CALLER.format(
        backend=made.backend, checkout=str(made.checkout), volume=made.volumes[0].name, grace=6
    ).replace("result = launcher.run(sys.argv[1])", "print(launcher.submit(sys.argv[1]).id); sys.exit()")
    # On Modal what others write to a volume is not seen before a reload.
    pause = "until [ -e /root/data/go ]; do sleep 0.05; done" if made.backend == "local" else "sleep 5"
    command = f"echo first; {pause}; echo last; exit 5"

    done = subprocess.run([sys.executable, "-c", script, command], stdout=subprocess.PIPE, text=True, check=True)
    run = Run.attach(done.stdout.strip())

    with pytest.raises(RunTimeout, match="it goes on"):
        run.wait(0.2)
    assert not run.state.is_final
    made.push(__file__, "/root/data/go")
    assert list(run.logs(follow=True)) == ["first", "last"]
    result = run.wait(60)
    assert (result.state, result.returncode) == (RunState.FAILED, 5)
    assert list(run.logs(tail=1)) == ["last"]
    assert list(Run.attach(run.id).logs()) == ["first", "last"]


def test_cancel_leaves_nothing_even_of_a_tree_that_will_not_end(launcher: Make) -> None:
    made = launcher(grace=1)
    run = made.submit(
        "trap '' TERM INT; setsid sh -c \"trap '' TERM INT; exec sleep 600\" & echo up; while :; do sleep 600; done"
    )
    assert next(iter(run.logs(follow=True))) == "up"

    run.cancel()
    result = run.wait(10)
    run.cancel()  # one that has ended is left as it is

    assert (result.state, result.returncode) == (RunState.CANCELLED, 137)
    with pytest.raises(RunCancelled):
        result.check_returncode()


def test_a_run_that_is_cancelled_at_once_is_cancelled_and_not_lost(launcher: Make) -> None:
    run = launcher().submit("exec sleep 600")

    run.cancel()  # its supervisor may not have begun

    result = Run.attach(run.id).wait(60)
    assert (result.state, result.returncode) == (RunState.CANCELLED, 130)


def test_an_unknown_id_is_answered_with_the_nearest(launcher: Make) -> None:
    run = launcher().submit("true")
    run.wait(60)

    with pytest.raises(RunNotFound) as caught:
        Run.attach(run.id[:-1])

    assert run.id in caught.value.nearest


def test_a_run_whose_processes_were_killed_is_lost(launcher: Make, backend: str) -> None:
    if backend != "local":
        pytest.skip("the container's processes are not this machine's")
    run = launcher().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    os.kill(int(run._execution.handle["pid"]), signal.SIGKILL)
    result = run.wait(30)

    assert (result.state, result.returncode) == (RunState.LOST, 125)
    assert Run.attach(run.id).state is RunState.LOST
    assert result.log_tail == "up"
