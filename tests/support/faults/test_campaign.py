"""Some runs of the campaign, and tests of its checks."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from skyrl_modal.protocol.log_lines import prefixed
from skyrl_modal.protocol.state import FailureCause

from .campaign import select_cases, table
from .cases import ROUND, Case, draw
from .checks import LAUNCHER_MESSAGE, Finding, Observation, check
from .fault_environment import FaultEnvironment
from .stream import SAVED_CODE, SAVED_LINE, pieces

SEED = 23
SAMPLE = (
    ("none", "modal"),
    ("client SIGKILL", "local"),
    ("client SIGKILL", "modal"),
    ("Ctrl-C", "local"),
    ("Ctrl-C", "modal"),
    ("Ctrl-C twice", "local"),
    ("cancel", "modal"),
    ("cancel process tree", "local"),
    ("supervisor SIGKILL", "local"),
    ("supervisor SIGKILL", "modal"),
    ("dropped stream", "modal"),
    ("UNAVAILABLE", "modal"),
    ("preemption", "modal"),
    ("timeout", "local"),
    ("full volume", "local"),
    ("slow reader, cancel", "local"),
    ("slow reader, timeout", "local"),
    ("kill wrapper shell", "local"),
    ("kill bubblewrap of rank 1", "local"),
)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultEnvironment]:
    """Yield an environment for runs with faults."""
    environment = FaultEnvironment(tmp_path_factory.mktemp("faults"), client_timeout=4)
    yield environment
    environment.close()


@pytest.mark.parametrize("fault_and_backend", SAMPLE, ids=", ".join)
def test_run_with_one_fault(fault_and_backend: tuple[str, str], environment: FaultEnvironment) -> None:
    """A run with one fault violates no guarantee."""
    if fault_and_backend == ("full volume", "local") and not environment.can_mount:
        pytest.skip("only root can mount a small file system")

    finding = environment.run(draw(SEED, ROUND.index(fault_and_backend)))

    assert finding.violations == ()


def test_case_depends_on_seed_and_number_only() -> None:
    """A number of a seed is always the same case, and another seed has other cases."""
    numbers = [case.number for case in select_cases(SEED, 3, "cancel", "modal")]

    assert [ROUND[number % len(ROUND)] for number in numbers] == [("cancel", "modal")] * 3
    assert draw(SEED, numbers[2]) == draw(SEED, numbers[2])
    assert draw(SEED, numbers[2]) != draw(SEED + 1, numbers[2])


# -- checks, on invented observations ----------------------------------------------------------------------------------

CASE = attrs.evolve(draw(SEED, ROUND.index(("cancel", "local"))), on_signal="save", after_lines=5)
PARTS = [piece for piece, _ in pieces(CASE.stream_seed, CASE.lines, CASE.longest_line)]


def observation(
    log: bytes, state: str = "cancelled", returncode: int = SAVED_CODE, cause: str | None = None
) -> Observation:
    """Return the observation of a run without violations, by default with the usual cause of its state."""
    cause = cause or {"succeeded": None, "cancelled": "stopped"}[state]
    result = {"state": state, "returncode": returncode, "cause": cause, "detail": "why"}
    lines = log.decode("utf-8", "replace").split("\n")
    observed = {
        **result,
        "found": True,
        "stop_reason": "cancelled" if state == "cancelled" else None,
        "state_now": state,
        "lines": lines[: -1 if log.endswith(b"\n") else None],
        "followed": None,
    }
    return Observation(0, log, "", result, observed, log, None, 1, ())


def test_check_accepts_a_correct_run() -> None:
    """A run that keeps all guarantees has no violations."""
    assert check(CASE, observation(b"".join(PARTS[:9]) + SAVED_LINE)).violations == ()


@pytest.mark.parametrize(
    "log",
    [
        b"".join([*PARTS[:4], *PARTS[5:9]]) + SAVED_LINE,
        b"".join([*PARTS[:4], *PARTS[3:9]]) + SAVED_LINE,
        b"".join(PARTS[:9])[:-1] + SAVED_LINE,
    ],
    ids=["gap", "repetition", "incomplete"],
)
def test_check_finds_gaps_and_repetitions(log: bytes) -> None:
    """Output with a gap or a repetition is a violation."""
    assert "gap or a repetition" in str(check(CASE, observation(log)).violations)


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"output": b"".join(PARTS[:8])}, "shown output and output.log differ"),
        ({"log": None}, "there is no output.log"),
        ({"returned": None}, "run did not return"),
        ({"returned": {"state": "cancelled", "returncode": 0, "cause": "stopped"}}, "run returned"),
        ({"observed": None}, "cannot be found"),
        ({"leftovers": ("process 1 is left",)}, "process 1 is left"),
    ],
)
def test_check_finds_missing_information(change: dict[str, object], violation: str) -> None:
    """Differences between caller, log and other processes, missing records and leftovers are violations."""
    correct = observation(b"".join(PARTS[:9]) + SAVED_LINE)

    assert violation in str(check(CASE, attrs.evolve(correct, **change)).violations)  # type: ignore[arg-type]  # any field


def test_check_finds_a_wrong_cause() -> None:
    """A cause that does not belong to the fault is a violation."""
    wrong = observation(b"".join(PARTS[:9]) + SAVED_LINE)
    assert wrong.observed is not None
    wrong.observed["cause"] = "rank_lost"

    assert "the cause is rank_lost, not stopped" in str(check(CASE, wrong).violations)


@pytest.mark.parametrize(("returncode", "cause"), [(1, "command_failed"), (SAVED_CODE, "ray_exited")])
def test_check_accepts_each_end_of_a_killed_process_of_ray(returncode: int, cause: str) -> None:
    """A command that fails by itself before Ray exits is no violation, and neither is one that Ray's end stops."""
    number = ROUND.index(("kill runtime env agent", "local"))
    case = attrs.evolve(draw(SEED, number), on_signal="save", after_lines=5, exit_code=1)
    parts = [piece for piece, _ in pieces(case.stream_seed, case.lines, case.longest_line)]
    end = (b"".join(parts) if cause == "command_failed" else b"".join(parts[:9]) + SAVED_LINE, "failed", returncode)

    assert check(case, observation(*end, cause=cause)).violations == ()
    assert "the cause is stopped, not" in str(check(case, observation(*end, cause="stopped")).violations)


def test_launcher_messages_are_recognized() -> None:
    """Messages with and without a cause separate the attempts in output.log."""
    log = b"one\n" + prefixed("starting again").encode() + prefixed("Ray exited", FailureCause.RAY_EXITED).encode()

    assert LAUNCHER_MESSAGE.sub(b"|", log) == b"one\n||"


def test_check_finds_wrong_success() -> None:
    """A cancelled run that is reported as succeeded, or with exit code 0, is a violation."""
    succeeded = check(CASE, observation(b"".join(PARTS), state="succeeded", returncode=0))
    with_code_0 = check(CASE, observation(b"".join(PARTS), returncode=0))

    assert "not cancelled" in str(succeeded.violations)
    assert "the exit code is 0, but" in str(with_code_0.violations)


def test_check_counts_restarts() -> None:
    """A preempted run restarts once for each preemption, which a launcher message in output.log shows."""
    case: Case = attrs.evolve(draw(SEED, ROUND.index(("preemption", "modal"))), on_signal="save", exit_code=0)
    parts = [piece for piece, _ in pieces(case.stream_seed, case.lines, case.longest_line)]
    log = b"".join(parts[:3]) + SAVED_LINE + b"skyrl-modal | starting again\n" + b"".join(parts)

    assert check(case, observation(log, "succeeded", 0)).violations == ()
    assert "restarts" in str(check(case, observation(b"".join(parts), "succeeded", 0)).violations)


def test_table_counts_outcomes() -> None:
    """The table has a row for each fault and backend, and the totals."""
    other = draw(SEED, ROUND.index(("none", "modal")))
    text = table([Finding(CASE, "cancelled", ()), Finding(CASE, "lost", ("wrong",)), Finding(other, "failed", ())])

    rows = {line.split("  ")[0]: line.split()[-4:] for line in text.splitlines()[1:]}
    assert rows["cancel, local"] == ["2", "1", "1", "1"]
    assert rows["total"] == ["1", "1", "1", "1"]
