"""Checks of a run after its fault: its end, its output, and what remains of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, RunState, StopReason
from tests.support.kill_table import COMMAND_KILLED, LOST, RANK_LOST, RAY_EXITED, SUCCEEDED

from .cases import KILLS, TIMEOUT_FAULTS, Case
from .stream import SAVED_CODE, SAVED_LINE, pieces

#: A message of the launcher, see ``protocol.log_lines``. The command's output never contains the prefix.
LAUNCHER_MESSAGE = re.compile(rb"skyrl-modal (?:\([a-z_]+\) )?\| [^\n]*\n?")
#: Faults that stop the run: a cancellation, or the exit of its caller.
STOPPING_FAULTS = frozenset(
    {
        "client SIGKILL",
        "client SIGTERM",
        "Ctrl-C",
        "Ctrl-C twice",
        "cancel",
        "cancel process tree",
        "slow reader, cancel",
    }
)
#: Faults after which the launcher adds a message to output.log, after the command's output.
LOGGED_FAULTS = frozenset(
    {
        "raylet SIGKILL",
        "rank 1 SIGKILL",
        *(fault for fault, (_, _, endings) in KILLS.items() if {RAY_EXITED, RANK_LOST}.intersection(endings)),
    }
)
#: Faults that end the command without a signal to it, so that its output may end anywhere.
KILLING_FAULTS = frozenset(
    {"supervisor SIGKILL", *(fault for fault, (_, _, endings) in KILLS.items() if endings[0] in (LOST, COMMAND_KILLED))}
)


@attrs.frozen
class Observation:
    """The facts about one run that are checked.

    Attributes:
        caller: Exit status of the caller, as in Popen.
        output: Standard output of the caller.
        messages: Standard error of the caller.
        returned: Result that ``run`` returned in the caller; None if it did not return.
        observed: Result and log that another process reads afterwards; None if it finds no run.
        log: Contents of output.log; None if there is no such file.
        record: The record in result.json; None if there is no such file.
        injected: How often the fault was injected.
        leftovers: Descriptions of what remains of the run.
    """

    caller: int
    output: bytes
    messages: str
    returned: dict[str, Any] | None
    observed: dict[str, Any] | None
    log: bytes | None
    record: RunResultRecord | None
    injected: int
    leftovers: tuple[str, ...]


@attrs.frozen
class Finding:
    """The outcome of one case, and the violations of what the package guarantees."""

    case: Case
    outcome: str
    violations: tuple[str, ...]


def check(case: Case, observation: Observation) -> Finding:
    """Compare an observation with the guarantees."""
    violations = list(observation.leftovers)
    observed = observation.observed
    if observed is None:
        outcome = "not started"
        violations += _check_not_started(case, observation)
    elif "error" in observed:
        outcome = "error"
        violations.append(f"another process could not read the run: {observed['error']}")
    else:
        is_injected = observation.injected or case.fault in ("none", "timeout")
        outcome = observed["state"] if is_injected else "fault too late"
        violations += [*_check_end(case, observation, observed), *_check_output(case, observation, observed)]
    if violations:
        summary = {key: value for key, value in (observed or {}).items() if key not in ("lines", "followed")}
        violations.append(f"{attrs.asdict(case)}")
        violations.append(
            f"observed {summary}, returned {observation.returned}, caller {observation.caller}, messages:"
        )
        violations += [f"  {line[:300]}" for line in observation.messages.splitlines()[-14:]]
    return Finding(case, outcome, tuple(violations))


def _check_not_started(case: Case, observation: Observation) -> Iterator[str]:
    if not case.is_early:
        yield "the run cannot be found, but it had output"
    if observation.output:
        yield f"the run cannot be found, but its output was shown: {observation.output[:100]!r}"


# -- end of the run ----------------------------------------------------------------------------------------------------


def _codes_after_stop(case: Case, first_signal: int) -> set[int]:
    """Return the possible exit codes of a command that was stopped by a signal."""
    codes = {{"save": SAVED_CODE, "exit": 128 + first_signal, "ignore": 137}[case.on_signal]}
    # Before its first line the command may not have started, or not have installed its signal handlers.
    return codes | {130, 143, 137, 1} if case.is_early else codes


def _expected_end(case: Case, injected: int) -> tuple[RunState, set[int], set[FailureCause | None]]:
    """Return the state, and the allowed exit codes and causes."""
    local = case.backend == "local"
    if case.fault in STOPPING_FAULTS:
        codes = _codes_after_stop(case, 2) | ({137} if case.fault == "Ctrl-C twice" else set())
        return RunState.CANCELLED, codes, _causes_after_stop(case)
    if case.fault == "supervisor SIGKILL":
        cause = FailureCause.SUPERVISOR_DIED if local else FailureCause.CONTAINER_DIED
        return RunState.LOST, {125}, {cause}
    if case.fault == "raylet SIGKILL":
        return RunState.FAILED, _codes_after_stop(case, 15), {FailureCause.RAY_EXITED}
    if case.fault == "rank 1 SIGKILL":
        return RunState.FAILED, _codes_after_stop(case, 15), {FailureCause.RANK_LOST}
    if case.fault in TIMEOUT_FAULTS:
        return RunState.TIMED_OUT, {124}, {FailureCause.ATTEMPT_TIMEOUT}
    if case.exit_code:
        return RunState.FAILED, {case.exit_code}, {FailureCause.COMMAND_FAILED}
    if case.fault == "full volume" and not local and injected:
        return RunState.FAILED, {125}, {FailureCause.VOLUME_COMMIT_FAILED}
    return RunState.SUCCEEDED, {0}, {None}


def _expected_ends(case: Case, injected: int) -> list[tuple[RunState, set[int], set[FailureCause | None]]]:
    """Return the states, each with the allowed exit codes and causes."""
    own = _expected_end(case, injected)
    if case.fault not in KILLS or not injected:
        return [own]
    ends = []
    for ending in KILLS[case.fault][2]:
        if ending == SUCCEEDED:
            ends.append(own)
        elif ending.state is not None and ending.returncode is not None:
            stopped = ending in (RAY_EXITED, RANK_LOST)
            codes = _codes_after_stop(case, 15) if stopped else {ending.returncode}
            if stopped and SUCCEEDED in KILLS[case.fault][2] and case.exit_code:
                codes = codes | {case.exit_code}  # it exits at the same time as Ray
            ends.append((ending.state, codes, {ending.cause}))
    return ends


def _causes_after_stop(case: Case) -> set[FailureCause | None]:
    """Return the possible causes of a run that was cancelled or whose caller exited."""
    if case.backend == "local":
        return {FailureCause.STOPPED}
    causes: set[FailureCause | None] = {FailureCause.STOPPED}
    if case.fault == "client SIGKILL":
        return {FailureCause.LEASE_EXPIRED}
    if case.fault == "Ctrl-C twice" or case.is_early:
        # The container may be killed before it writes a result.
        causes.add(FailureCause.NOT_CONFIRMED)
    return causes


def _check_end(case: Case, observation: Observation, observed: dict[str, Any]) -> Iterator[str]:
    state, code, cause = observed["state"], observed["returncode"], observed["cause"]
    ends = _expected_ends(case, observation.injected)
    # Two ends can have the same state: the command ends by itself, or is stopped since Ray has exited.
    same_state = [end for end in ends if end[0] == state] or ends
    matching = [end for end in same_state if code in end[1] and cause in end[2]]
    expected_state, codes, causes = (matching or same_state)[0]
    if state != expected_state or code not in codes:
        yield f"state and exit code are {state} and {code}, not {expected_state} and {sorted(codes)}"
    if cause not in causes:
        yield f"the cause is {cause}, not {' or '.join(map(str, causes))}"
    if code == 0 and state != "succeeded":
        yield f"the exit code is 0, but the state is {state}"
    if observed["state_now"] != state:
        yield f"Run.state is {observed['state_now']}, but the state of the result is {state}"
    if case.fault in STOPPING_FAULTS and observed["stop_reason"] not in _stop_reasons(case):
        yield f"the stop reason is {observed['stop_reason']}"
    yield from _check_caller(case, observation, observed)
    if case.fault == "full volume":
        yield from _check_full_volume(case, observation, observed)
    if case.fault == "supervisor SIGKILL" and not observed["detail"]:
        yield "the result does not explain why the run was lost"


def _stop_reasons(case: Case) -> set[StopReason | None]:
    """Return the possible reasons of a stop."""
    if case.fault == "client SIGKILL":
        return {StopReason.CALLER_EXITED if case.backend == "local" else StopReason.LEASE_EXPIRED}
    return {StopReason.CANCELLED, StopReason.KILL}


def _check_caller(case: Case, observation: Observation, observed: dict[str, Any]) -> Iterator[str]:
    """Check that the caller reports the same end as another process."""
    returned, state, code = observation.returned, observed["state"], observed["returncode"]
    if case.fault.startswith("Ctrl-C"):
        if observation.caller != -2:
            yield f"the caller exited with {observation.caller}, not by KeyboardInterrupt"
        # The caller alone knows the exit code of a run that it killed before its container started.
        with_code = not (case.is_early and case.backend == "modal")
        if (f"{state}, exit code {code} " if with_code else f"{state}, exit code") not in observation.messages:
            yield "the caller did not report the end that other processes see"
    elif case.fault in ("client SIGKILL", "client SIGTERM"):
        if returned is not None:
            yield f"the caller returned before the fault: {returned}"
    elif returned is None:
        yield f"run did not return: the caller exited with {observation.caller}"
    elif any(returned[name] != observed[name] for name in ("state", "returncode", "cause")):
        yield f"run returned {returned}; other processes see {state}, {code}, {observed['cause']}"


def _check_full_volume(case: Case, observation: Observation, observed: dict[str, Any]) -> Iterator[str]:
    """Check that a loss of data is reported."""
    if case.backend == "local":
        is_incomplete = len(observation.log or b"") < len(observation.output)
        if is_incomplete and (observation.record is None or observation.record.output.error is None):
            yield "the record does not contain that output.log is incomplete"
        is_lossy = is_incomplete
    else:
        is_lossy = bool(observation.injected)
    if is_lossy and not observed["detail"]:
        yield "the result does not explain which data was lost"


# -- output ------------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _expected_output(case: Case) -> bytes:
    return b"".join(piece for piece, _ in pieces(case.stream_seed, case.lines, case.longest_line))


def _is_prefix(data: bytes, case: Case, *, anywhere: bool) -> bool:
    """Return whether data is a prefix of the expected output, possibly followed by the line of a saving command.

    Args:
        data: Output of an attempt.
        case: The case.
        anywhere: Whether the output may end within a piece. A command that saves is interrupted between pieces only.
    """
    ends, whole = set(), b""
    for piece, _ in pieces(case.stream_seed, case.lines, case.longest_line):
        ends.add(len(whole))
        whole += piece
    ends.add(len(whole))
    if anywhere:
        return whole.startswith(data.removesuffix(SAVED_LINE)) or whole.startswith(data)
    saves = case.on_signal == "save"
    length = len(data.removesuffix(SAVED_LINE)) if saves and data.endswith(SAVED_LINE) else len(data)
    return whole.startswith(data[:length]) and (length in ends or not saves)


def _check_output(case: Case, observation: Observation, observed: dict[str, Any]) -> Iterator[str]:
    local, log = case.backend == "local", observation.log
    # If the container was killed, its volume has only what Modal committed in the background.
    killed = (case.fault in ("supervisor SIGKILL", "Ctrl-C twice") and not local) or case.fault == "full volume"
    if log is None:
        if not killed and not case.is_early:
            yield "there is no output.log"
        log = b""
    yield from _compare_shown_and_logged(case, observation, log, killed=killed)
    yield from _compare_with_expected(case, observation, log, killed=killed)
    lines = _text(log).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not killed and observed["lines"] != lines:
        yield f"logs() differs from output.log: {len(observed['lines'])} lines, not {len(lines)}"
    followed = observed["followed"]
    if followed is not None and not killed and followed != lines:
        yield f"logs(follow=True) differs from output.log: {len(followed)} lines, not {len(lines)}"


def _compare_shown_and_logged(case: Case, observation: Observation, log: bytes, *, killed: bool) -> Iterator[str]:
    """Compare the caller's output with output.log."""
    local = case.backend == "local"
    caller_survives = case.fault not in ("client SIGKILL", "client SIGTERM")
    shown, logged = _text(observation.output), _text(log)
    if case.fault == "full volume" and local:
        if not observation.output.startswith(log):
            yield f"output.log is not a prefix of the shown output: {_difference(observation.output, log)}"
    elif local and caller_survives:
        if observation.output != log:
            yield f"shown output and output.log differ: {_difference(observation.output, log)}"
    elif local:
        if not log.startswith(observation.output):
            yield f"the shown output is not a prefix of output.log: {_difference(observation.output, log)}"
    elif not caller_survives:
        if not logged.startswith(shown.rstrip("\ufffd")):
            yield f"the shown output is not a prefix of output.log: {_difference(shown, logged)}"
    elif shown != logged:
        if not killed:
            yield f"shown output and output.log differ: {_difference(shown, logged)}"
        elif not shown.startswith(logged.rstrip("\ufffd")):
            yield f"output.log is not a prefix of the shown output: {_difference(shown, logged)}"
        elif case.fault == "supervisor SIGKILL" and observation.log is not None and not _has_warning(observation):
            yield "output.log is shorter than the shown output, and the caller did not report it"


def _has_warning(observation: Observation) -> bool:
    """Return whether the caller showed a warning (``views.text`` writes its level before the text)."""
    return "skyrl-modal | warning: " in observation.messages


def _compare_with_expected(case: Case, observation: Observation, log: bytes, *, killed: bool) -> Iterator[str]:
    """Compare the caller's output and output.log with the output of the command."""
    local = case.backend == "local"
    shown, whole = _text(observation.output), _expected_output(case)
    shown_prefix = shown.removesuffix(SAVED_LINE.decode()).rstrip("\ufffd")
    is_cut = killed and case.fault != "full volume" and not case.is_early
    if is_cut and not _text(whole).startswith(shown_prefix):
        yield f"the shown output has a gap or a repetition: {_difference(shown, _text(whole))}"
    if case.fault in ("none", "client SIGSTOP", "dropped stream", "UNAVAILABLE", "offline", "full volume"):
        if (observation.output if local else shown) != (whole if local else _text(whole)):
            yield f"the shown output differs from the command's: {_difference(shown, _text(whole))}"
    elif case.fault == "preemption":
        attempts = LAUNCHER_MESSAGE.split(log)
        if len(attempts) != observation.injected + 1 or attempts[-1] != whole:
            yield (
                f"output.log has {len(attempts) - 1} restarts, not {observation.injected}, "
                "or its last attempt is incomplete"
            )
        if not all(_is_prefix(attempt, case, anywhere=False) for attempt in attempts[:-1]):
            yield "the output of an attempt before a preemption has a gap or a repetition"
    elif not case.is_early:
        is_killed = case.fault in KILLING_FAULTS | TIMEOUT_FAULTS | {"Ctrl-C twice"}
        anywhere = is_killed or case.on_signal != "save"
        command_output = LAUNCHER_MESSAGE.split(log)[0] if case.fault in LOGGED_FAULTS else log
        if not _is_prefix(command_output, case, anywhere=anywhere):
            yield f"output.log has a gap or a repetition: {_difference(_text(log), _text(whole))}"


def _difference(one: Any, other: Any) -> str:
    """Describe the position where two outputs begin to differ."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{len(one)} and {len(other)} long, different from {at}: {one[at : at + 60]!r}, {other[at : at + 60]!r}"
