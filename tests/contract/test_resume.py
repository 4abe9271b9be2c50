"""``resume="auto"``: attempts continue from the newest complete checkpoint, also of a script that never does."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from skyrl_modal import Run, RunState, SpecError, VolumeSpec, runs
from skyrl_modal.cli.commands import cli
from skyrl_modal.findings import Severity
from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.run.index import RunIndex
from tests.conftest import MakeLauncher
from tests.contract.conftest import LOCAL_FIRST, divide
from tests.support.small_trainer import SCRIPT, add_to_checkout

POINTER = "latest_ckpt_global_step.txt"


@pytest.fixture
def trainer_checkout(checkout: Path) -> Path:
    """Return the checkout with a small trainer and a script with ``resume_mode=null``."""
    add_to_checkout(checkout)
    return checkout


def steps_of(output: io.BytesIO) -> list[int]:
    """Return the steps that were trained, in their order."""
    lines = output.getvalue().decode().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


FAULTS = {
    "cut pointer": (4, f"wrote 4 to {POINTER} (it is empty)"),
    "before the pointer": (4, f"wrote 4 to {POINTER} (it named step 2)"),
    "incomplete": (2, "moved global_step_4 to incomplete/global_step_4.2 (trainer_state.pt: missing)"),
    "before the model": (2, "moved global_step_4 to incomplete/global_step_4.2 (trainer_state.pt: missing, "),
    "pointer names an incomplete one": (2, f"wrote 2 to {POINTER} (it named step 4)"),
    "everything": (0, "no complete checkpoint"),
}


@pytest.mark.usefixtures("trainer_checkout")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_killed_attempt_is_continued_locally(launcher: MakeLauncher, fault: str) -> None:
    """After a kill at any moment of a save, the next attempt continues from the newest complete checkpoint."""
    check_fault(launcher, fault)


@pytest.mark.usefixtures("trainer_checkout")
@divide("fault", "before the pointer", "incomplete")
def test_killed_attempt_is_continued(launcher: MakeLauncher, fault: str) -> None:
    """The same on both backends."""
    check_fault(launcher, fault)


def check_fault(launcher: MakeLauncher, fault: str) -> None:
    begin, message = FAULTS[fault]
    output = io.BytesIO()

    result = launcher(retries=1, resume="auto", env={"FAULT": fault}).run(f"bash {SCRIPT}", output=output, quiet=True)

    text = output.getvalue().decode()
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2), text
    assert steps_of(output) == [1, 2, 3, 4, *range(begin + 1, 7)]
    [line] = [line for line in text.splitlines() if "resume: " in line]
    assert message in line


@pytest.mark.usefixtures("trainer_checkout")
def test_next_run_continues_and_moves_nothing(launcher: MakeLauncher, volume: VolumeSpec) -> None:
    """A further run of the command continues from the last checkpoint, and its folder is unchanged."""
    run = launcher(resume="auto")
    run.run(f"bash {SCRIPT}", output=io.BytesIO(), quiet=True, check=True)
    before = [entry.path for entry in run.ls("/root/data/ckpts/a")]
    output = io.BytesIO()

    run.run(f"bash {SCRIPT}", output=output, quiet=True, check=True)

    assert "begins after step 6" in output.getvalue().decode()
    assert [entry.path for entry in run.ls("/root/data/ckpts/a")] == before


@pytest.mark.usefixtures("trainer_checkout")
def test_checkpoints_of_a_run_that_has_ended(launcher: MakeLauncher) -> None:
    """`Run.checkpoints` and `skyrl-modal checkpoints` list what is there, and what an incomplete one lacks."""
    result = launcher(env={"FAULT": "incomplete"}).run(f"bash {SCRIPT}", output=io.BytesIO(), quiet=True)
    run = Run.attach(result.run_id)

    old, new = run.checkpoints()

    assert (old.step, old.complete, old.missing) == (2, True, ())
    assert (new.step, new.complete, new.missing) == (4, False, ("trainer_state.pt: missing",))
    assert old.path == "/root/data/ckpts/a/global_step_2"
    assert old.world_sizes == {"policy": 2}
    assert old.bytes > 6 * 64
    printed = CliRunner().invoke(cli, ["checkpoints", run.id, "--json"], catch_exceptions=False).output
    rows = json.loads(printed)
    assert [(row["step"], row["complete"], row["missing"]) for row in rows] == [
        (2, True, []),
        (4, False, ["trainer_state.pt: missing"]),
    ]
    lines = CliRunner().invoke(cli, ["checkpoints", run.id], catch_exceptions=False).output.splitlines()
    assert [line.split()[:2] for line in lines] == [["2", "yes"], ["4", "no"]]


def test_run_without_trainer_has_no_checkpoints(launcher: MakeLauncher) -> None:
    """A command that starts no trainer has no checkpoint folder, and that is no error."""
    result = launcher().run("true", quiet=True)

    assert Run.attach(result.run_id).checkpoints() == []


@pytest.mark.usefixtures("trainer_checkout")
def test_other_number_of_gpus_is_refused(launcher: MakeLauncher) -> None:
    """FSDP cannot load a checkpoint of another number of GPUs: the run is not started, and the plan has an error."""
    launcher().run(f"bash {SCRIPT}", output=io.BytesIO(), quiet=True, check=True)
    before = [run.id for run in runs()]
    used = launcher(resume="auto", env={"WORLD": "4"})

    with pytest.raises(SpecError, match="saved by 2 GPUs with FSDP") as caught:
        used.run(f"bash {SCRIPT}", quiet=True)

    assert (caught.value.field, caught.value.value) == ("resume", "auto")
    assert [run.id for run in runs()] == before
    found = {finding.code: finding.severity for finding in used.plan(f"bash {SCRIPT}", check=True).findings}
    assert found["resume-mismatch"] is Severity.ERROR


@pytest.mark.usefixtures("trainer_checkout")
def test_second_live_run_is_refused_until_the_first_is_killed(
    launcher: MakeLauncher, backend: str, request: pytest.FixtureRequest
) -> None:
    """Two live runs do not train into one folder. A run that was killed does not block it."""
    first = launcher(env={"WAIT_FOR": "/nowhere"}).submit(f"bash {SCRIPT}")
    wait_for_line(first, "step 6")

    refused = launcher(resume="auto").run(f"bash {SCRIPT}", output=io.BytesIO(), quiet=True)

    assert (refused.state, refused.returncode) == (RunState.FAILED, 125)
    assert refused.cause is FailureCause.CHECKPOINTS_IN_USE
    assert first.id in refused.detail
    assert refused.diagnosis is not None
    assert refused.diagnosis.code == "checkpoints-in-use"

    if backend == "local":
        os.kill(int(RunIndex().get(first.id).handle["pid"]), signal.SIGKILL)
    else:
        request.getfixturevalue("shared_loopback").kill()
    assert first.wait(60).state is RunState.LOST
    output = io.BytesIO()

    result = launcher(resume="auto").run(f"bash {SCRIPT}", output=output, quiet=True)

    assert result.state is RunState.SUCCEEDED, result.detail
    assert "begins after step " in output.getvalue().decode()


def wait_for_line(run: Run, text: str) -> None:
    """Wait until the output has a line."""
    assert text in run.logs(follow=True)


@pytest.mark.usefixtures("trainer_checkout")
@LOCAL_FIRST
def test_run_without_resume_is_only_warned(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """Without resume, a second run starts as before. A message names the other run."""
    first = launcher(env={"WAIT_FOR": "/nowhere"}).submit(f"bash {SCRIPT}")
    wait_for_line(first, "step 6")
    try:
        result = launcher().run(f"bash {SCRIPT}", output=io.BytesIO())
    finally:
        first.cancel()

    assert result.state is RunState.SUCCEEDED
    assert f"warning: the run {first.id}, which has not ended, writes its checkpoints to" in capfd.readouterr().err
    assert first.wait(30).state is RunState.CANCELLED


@pytest.mark.usefixtures("trainer_checkout")
@pytest.mark.parametrize("backend", ["modal"], indirect=True)
def test_no_writable_volume_is_refused(launcher: MakeLauncher) -> None:
    """Nothing is started if no checkpoint would remain. On this machine, files outside of volumes remain."""
    used, before = launcher(resume="auto", volumes=[]), runs()

    for start in (used.submit, used.run):
        with pytest.raises(SpecError, match="Mount a writable volume") as caught:
            start(f"bash {SCRIPT}")
        assert (caught.value.field, caught.value.value) == ("resume", "auto")

    assert [run.id for run in runs()] == [run.id for run in before]


@LOCAL_FIRST
def test_resume_without_a_trainer_has_no_effect(launcher: MakeLauncher) -> None:
    """For a command that is no trainer there is a warning, and further attempts start it as it is."""
    used, output = launcher(resume="auto", retries=1), io.BytesIO()

    result = used.run("echo attempt $SKYRL_ATTEMPT; exit 3", output=output, quiet=True)

    [finding] = [finding for finding in used.plan("exit 3").findings if finding.code == "resume-without-effect"]
    assert finding.severity is Severity.WARNING
    assert (result.returncode, result.attempts) == (3, 2)
    lines = [line for line in output.getvalue().decode().splitlines() if not line.startswith("skyrl-modal |")]
    assert lines == ["attempt 1", "attempt 2"]
