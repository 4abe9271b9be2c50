"""Runs in modes of the loopback: what users of Modal have recorded, each with a run that meets it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RunState
from skyrl_modal.errors import SkyRLModalError
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.loopback import LoopbackModal

MakeServer = Callable[..., LoopbackModal]
MakeLauncher = Callable[..., Launcher]
#: Saves for some seconds after SIGINT, and is not finished before the replacement of its container has started.
SAVING = (
    'f=$SKYRL_DATA/saved; [ -e "$f" ] && { echo "resumed $SKYRL_ATTEMPT"; exit 0; }; '
    "trap 'echo saving; sleep SECONDS; touch \"$f\"; echo saved; exit 9' INT; echo up; while :; do sleep 0.2; done"
)


@pytest.fixture
def make_launcher(checkout: Path, volume: object) -> MakeLauncher:
    """Return a function that makes launchers, after the test has started its control plane."""
    defaults = {"backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None}
    return lambda **fields: Launcher(**{**defaults, **fields})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "seconds"),
    [("recorded", 1), ("late_replacement", 1), ("overlap", 5)],
)
def test_preempted_command_saves_and_resumes(
    make_server: MakeServer, make_launcher: MakeLauncher, tmp_path: Path, mode: str, seconds: int
) -> None:
    """A preempted command saves its files, and is started again, whenever its new container starts."""
    server, used = make_server(mode=mode), make_launcher(grace=20)
    output = ActingOutput("up\n", server.preempt)

    result = used.run(SAVING.replace("SECONDS", str(seconds)), output=output, quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 1)
    lines = stored_output(used, result, tmp_path).decode().splitlines()
    assert [line for line in lines if not line.startswith("skyrl-modal |")] == ["up", "saving", "saved", "resumed 1"]


@pytest.mark.parametrize(
    "mode", ["commits_fail_once", "reload_after_commit", "slow_commits", "direct_volumes", "no_pidfd"]
)
def test_run_is_complete(make_server: MakeServer, make_launcher: MakeLauncher, tmp_path: Path, mode: str) -> None:
    """A run succeeds, and its files are on the volume."""
    make_server(mode=mode)
    used = make_launcher()

    result = used.run('echo text; echo kept > "$SKYRL_DATA/kept"', quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.SUCCEEDED, None, 0)
    assert stored_output(used, result, tmp_path) == b"text\n"
    assert used.pull("/root/data/kept", tmp_path / "kept").read_bytes() == b"kept\n"


def test_command_changes_read_only_mounts(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """The command can change its checkout, also if Modal's mounts are read-only."""
    make_server(mode="read_only_mounts")

    result = make_launcher().run("echo changed > train.py && mkdir new && cat train.py", quiet=True)

    assert (result.state, result.returncode) == (RunState.SUCCEEDED, 0)


@pytest.mark.parametrize("mode", ["recorded", "sitecustomize"])
def test_command_has_nothing_of_modals_runtime(make_server: MakeServer, make_launcher: MakeLauncher, mode: str) -> None:
    """The command cannot import the dependencies of Modal's runtime."""
    make_server(mode=mode)
    code = "import sys; print(sys.path); import modal_runtime_dependency"

    result = make_launcher().run(["python3", "-c", code], quiet=True)

    assert result.returncode == 1


@pytest.mark.parametrize(("mode", "home"), [("recorded", "/root"), ("home_ray", "/home/ray")])
def test_command_has_the_home_of_its_container(
    make_server: MakeServer, make_launcher: MakeLauncher, tmp_path: Path, mode: str, home: str
) -> None:
    """HOME is not changed, and the programs in /home/ray/.local/bin are found."""
    make_server(mode=mode)
    used = make_launcher()

    result = used.run('echo "$HOME"; case ":$PATH:" in *:/home/ray/.local/bin:*) echo yes;; esac', quiet=True)

    assert stored_output(used, result, tmp_path).decode().splitlines() == [home, "yes"]


def test_wait_for_capacity_is_reported(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """While a run waits for a worker, Modal's reason is reported."""
    make_server(mode="capacity_wait")

    assert make_launcher().run("true").returncode == 0

    assert "waiting to be scheduled on a CPU worker" in capfd.readouterr().err


@pytest.mark.parametrize(("mode", "text"), [("spend_limit", "spend limit"), ("disabled", "disabled")])
def test_spend_limit_at_the_start_is_an_error(
    make_server: MakeServer, make_launcher: MakeLauncher, mode: str, text: str
) -> None:
    """A workspace that may not run anything is an error with Modal's text, which is about no field."""
    server = make_server(mode=mode)

    with pytest.raises(SkyRLModalError, match=text) as caught:
        make_launcher().run("true", quiet=True)

    assert not hasattr(caught.value, "field")
    server.mode = "recorded"


@pytest.mark.slow
def test_spend_limit_ends_a_run(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """A run that the spend limit ends is not waited for without end."""
    server = make_server()
    run = make_launcher(grace=1).submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    threading.Thread(target=server.exceed_spend_limit).start()

    try:
        assert run.wait(30).returncode != 0
    finally:
        server.mode = "recorded"


@pytest.mark.slow
def test_driver_that_fails_once_takes_no_attempt(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """A container whose GPU driver does not initialize is replaced, and no attempt is counted."""
    make_server(mode="driver_fails_once")

    result = make_launcher(gpu="L4").run("nvidia-smi", quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
