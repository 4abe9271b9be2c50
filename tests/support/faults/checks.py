"""What must be true of a run after its fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from .cases import Case
from .stream import SAVED, SAVED_CODE, pieces

#: How a line of ours begins that follows the output where a fault ends the run.
LAST_WORDS = {"raylet SIGKILL": b"skyrl-modal | Ray ended with exit code ", "rank 1 SIGKILL": b"skyrl-modal | rank 1 ("}
#: The line that stands where a preempted run goes on.
MOVED = b"skyrl-modal | Modal has moved the run to another container; starting again\n"
#: What is said where the live view is known not to be whole.
DAMAGED = "damaged or not whole"
LOG_ENDS = "output.log ends after"


@attrs.frozen
class Seen:
    """What was seen of one run.

    Attributes:
        caller: The caller's exit status, as of Popen.
        shown: What it wrote to standard output.
        said: What it wrote to standard error.
        told: What ``run`` returned in it; None where it did not.
        observed: What another process was told of the run afterwards; None where it found none.
        log: output.log; None where there is none.
        struck: How often the fault came.
        leftovers: What was left behind, in words.
    """

    caller: int
    shown: bytes
    said: str
    told: dict[str, Any] | None
    observed: dict[str, Any] | None
    log: bytes | None
    struck: int
    leftovers: tuple[str, ...]


@attrs.frozen
class Finding:
    """What one run came to."""

    case: Case
    outcome: str
    problems: tuple[str, ...]


def judge(case: Case, seen: Seen) -> Finding:
    """Compare what was seen with what is promised."""
    problems = list(seen.leftovers)
    if seen.observed is None:
        outcome = "not started"
        problems += _not_started(case, seen)
    elif "error" in seen.observed:
        outcome = "error"
        problems.append(f"another process could not ask: {seen.observed['error']}")
    else:
        outcome = seen.observed["state"] if seen.struck or case.fault in ("none", "time-out") else "fault too late"
        problems += [*_ending(case, seen), *_output(case, seen)]
    if problems:
        problems.append(f"{attrs.asdict(case)}")
        problems.append(f"observed {_short(seen.observed)}, told {seen.told}, caller {seen.caller}; it said:")
        problems += [f"  {line[:300]}" for line in seen.said.splitlines()[-14:]]
    return Finding(case, outcome, tuple(problems))


def _short(observed: dict[str, Any] | None) -> str:
    return str({k: v for k, v in (observed or {}).items() if k not in ("lines", "followed")})


def _not_started(case: Case, seen: Seen) -> Iterator[str]:
    if not case.is_early:
        yield "the run cannot be found, though it printed"
    if seen.shown:
        yield f"the run cannot be found, though the user saw {seen.shown[:100]!r}"


# -- how it ended ------------------------------------------------------------------------------------------------------


def _stopped_codes(case: Case, by: int) -> set[int]:
    """Exit codes of a command that was stopped by a signal first."""
    codes = {{"saves": SAVED_CODE, "dies": 128 + by, "ignores": 137}[case.manner]}
    # Before its first line the command may not have begun, or not have come to say how it takes signals.
    return codes | {130, 143, 137, 1} if case.is_early else codes


def _expected(case: Case, struck: int) -> tuple[set[str], set[int]]:
    """The states and exit codes that are right."""
    by_itself = ({"failed"} if case.code else {"succeeded"}, {case.code})
    if case.fault in ("client SIGKILL", "client SIGTERM", "Ctrl-C", "cancel", "cancel a tree"):
        return {"cancelled"}, _stopped_codes(case, 2)
    if case.fault == "Ctrl-C twice":
        return {"cancelled"}, _stopped_codes(case, 2) | {137}
    if case.fault == "supervisor SIGKILL":
        return {"lost"}, {125}
    if case.fault in ("raylet SIGKILL", "rank 1 SIGKILL"):
        return {"failed"}, _stopped_codes(case, 15)
    if case.fault == "time-out":
        return {"timed_out"}, {124}
    if case.fault == "full volume" and case.backend == "modal" and struck:
        return {"failed"}, {case.code or 125}
    return by_itself


def _ending(case: Case, seen: Seen) -> Iterator[str]:
    assert seen.observed is not None
    states, codes = _expected(case, seen.struck)
    state, code = seen.observed["state"], seen.observed["returncode"]
    if state not in states or code not in codes:
        yield f"state and exit code are {state} and {code}, not {sorted(states)} and {sorted(codes)}"
    if code == 0 and state != "succeeded":
        yield f"exit code 0 with the state {state}"
    if seen.observed["state_now"] != state:
        yield f"the state is {seen.observed['state_now']}, the result's {state}"
    if case.fault.startswith("Ctrl-C"):
        if seen.caller != -2:
            yield f"the caller did not get KeyboardInterrupt, but ended with {seen.caller}"
        # Killed before its container was up: only who did so knows that it was killed.
        said = f"{state}, exit code" if case.is_early and case.backend == "modal" else f"{state}, exit code {code} "
        if said not in seen.said:
            yield "the caller was not told of the end that others see"
    elif case.fault in ("client SIGKILL", "client SIGTERM"):
        if seen.told is not None:
            yield f"the caller ended before the fault: {seen.told}"
    elif seen.told is None:
        yield f"run did not return: the caller ended with {seen.caller}"
    elif (seen.told["state"], seen.told["returncode"]) != (state, code):
        yield f"the caller was told {seen.told['state']}, {seen.told['returncode']}; others {state}, {code}"
    if case.fault == "full volume":
        local = case.backend == "local"
        wanted = LOG_ENDS if local else "could not be committed"
        if len(seen.log or b"") < len(seen.shown) if local else seen.struck:
            if wanted not in seen.said:
                yield f"the caller was not told: {wanted!r} is not in what it was told"
            if wanted not in seen.observed["detail"]:
                yield f"others are not told: {wanted!r} is not in the detail"
    if case.fault == "supervisor SIGKILL" and not seen.observed["detail"]:
        yield "nothing is said of why the run was lost"


# -- what it printed ---------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _is_beginning(data: bytes, case: Case, *, anywhere: bool) -> bool:
    """Whether data is how the command's output begins, with what it says when it saves, and nothing else."""
    stopped_at, whole = set(), b""
    for piece, _ in pieces(case.stream, case.lines, case.longest):
        stopped_at.add(len(whole))
        whole += piece
    stopped_at.add(len(whole))
    if anywhere:
        return whole.startswith(data.removesuffix(SAVED)) or whole.startswith(data)
    told = len(data.removesuffix(SAVED)) if case.manner == "saves" and data.endswith(SAVED) else len(data)
    return whole.startswith(data[:told]) and (told in stopped_at or case.manner != "saves")


def _whole(case: Case) -> bytes:
    return b"".join(piece for piece, _ in pieces(case.stream, case.lines, case.longest))


def _output(case: Case, seen: Seen) -> Iterator[str]:
    assert seen.observed is not None
    local, log = case.backend == "local", seen.log
    survives = case.fault not in ("client SIGKILL", "client SIGTERM")
    # Where nothing of the container is left, no more than what Modal has committed by itself can be on the volume.
    killed = (case.fault in ("supervisor SIGKILL", "Ctrl-C twice") and not local) or case.fault == "full volume"
    if log is None:
        if not killed and not case.is_early:
            yield "there is no output.log"
        log = b""
    # What was shown beside the log.
    if local and survives and case.fault != "full volume" and seen.shown != log:
        yield f"shown and output.log differ: {_difference(seen.shown, log)}"
    if local and not survives and not log.startswith(seen.shown):
        yield f"shown is not how output.log begins: {_difference(seen.shown, log)}"
    shown, logged = _text(seen.shown), _text(log)
    if not local and not survives and not logged.startswith(shown.rstrip("\ufffd")):
        yield f"shown is not how output.log begins: {_difference(shown, logged)}"
    if not local and survives and shown != logged:
        if not killed:
            yield f"shown and output.log differ: {_difference(shown, logged)}"
        elif not shown.startswith(logged.rstrip("\ufffd")):
            yield f"output.log is not how shown begins: {_difference(shown, logged)}"
        elif case.fault == "supervisor SIGKILL" and DAMAGED not in seen.said and seen.log is not None:
            yield "output.log has less than was shown, and nobody said so"
    if killed and case.fault != "full volume" and not case.is_early:
        beginning = shown.removesuffix(SAVED.decode()).rstrip("\ufffd")
        if not _text(_whole(case)).startswith(beginning):
            yield f"shown has a gap or a repeat: {_difference(shown, _text(_whole(case)))}"
    if case.fault == "full volume" and local and not seen.shown.startswith(log):
        yield f"output.log is not how shown begins: {_difference(seen.shown, log)}"
    # Either beside what the command printed.
    if case.fault in ("none", "client stopped", "dropped stream", "UNAVAILABLE", "offline", "full volume"):
        whole = _whole(case)
        if (seen.shown if local else shown) != (whole if local else _text(whole)):
            yield f"shown is not what was printed: {_difference(shown, _text(whole))}"
    elif case.fault == "preemption":
        parts = log.split(MOVED)
        if len(parts) != seen.struck + 1 or parts[-1] != _whole(case):
            yield f"output.log has {len(parts) - 1} new starts, not {seen.struck}, or does not end with a whole one"
        if not all(_is_beginning(part, case, anywhere=False) for part in parts[:-1]):
            yield "an attempt before a preemption has a gap or a repeat"
    elif not case.is_early:
        anywhere = case.fault in ("supervisor SIGKILL", "Ctrl-C twice", "time-out") or case.manner != "saves"
        if case.fault in LAST_WORDS:
            log = log.partition(LAST_WORDS[case.fault])[0]
        if not _is_beginning(log, case, anywhere=anywhere):
            yield f"output.log has a gap or a repeat: {_difference(logged, _text(_whole(case)))}"
    # What others can read of it.
    lines = logged.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not killed and seen.observed["lines"] != lines:
        yield f"logs() is not output.log: {len(seen.observed['lines'])} lines, not {len(lines)}"
    followed = seen.observed["followed"]
    if followed is not None and not killed and followed != lines:
        yield f"logs(follow=True) is not output.log: {len(followed)} lines, not {len(lines)}"


def _difference(one: Any, other: Any) -> str:
    """Where two outputs part."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{len(one)} and {len(other)} long, they part at {at}: {one[at : at + 60]!r}, {other[at : at + 60]!r}"
