"""A short excerpt of the campaign, and that what it looks for it also finds."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from .campaign import chosen, table
from .cases import ROUND, Case, draw
from .checks import MOVED, Finding, Seen, judge
from .stream import SAVED, SAVED_CODE, pieces
from .world import World

SEED = 23
EXCERPT = (
    ("none", "modal"),
    ("client SIGKILL", "local"),
    ("client SIGKILL", "modal"),
    ("Ctrl-C", "local"),
    ("Ctrl-C", "modal"),
    ("Ctrl-C twice", "local"),
    ("cancel", "modal"),
    ("cancel a tree", "local"),
    ("supervisor SIGKILL", "local"),
    ("supervisor SIGKILL", "modal"),
    ("dropped stream", "modal"),
    ("UNAVAILABLE", "modal"),
    ("preemption", "modal"),
    ("time-out", "local"),
    ("full volume", "local"),
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults"), client_timeout=4)
    yield made
    made.close()


@pytest.mark.parametrize("which", EXCERPT, ids=", ".join)
def test_a_run_with_one_fault(which: tuple[str, str], world: World) -> None:
    if which == ("full volume", "local") and not world.can_mount:
        pytest.skip("a small file system can be mounted by root alone")

    finding = world.run(draw(SEED, ROUND.index(which)))

    assert finding.problems == ()


def test_a_number_of_a_seed_is_always_the_same_run() -> None:
    numbers = [case.number for case in chosen(SEED, 3, "cancel", "modal")]

    assert [ROUND[number % len(ROUND)] for number in numbers] == [("cancel", "modal")] * 3
    assert draw(SEED, numbers[2]) == draw(SEED, numbers[2])
    assert draw(SEED, numbers[2]) != draw(SEED + 1, numbers[2])


# -- the judge, on runs that never were --------------------------------------------------------------------------------

CASE = attrs.evolve(draw(SEED, ROUND.index(("cancel", "local"))), manner="saves", moment=5)
PARTS = [piece for piece, _ in pieces(CASE.stream, CASE.lines, CASE.longest)]


def seen(log: bytes, case: Case = CASE, state: str = "cancelled", returncode: int = SAVED_CODE) -> Seen:
    """A run as it should be, of which all was seen."""
    facts = {"state": state, "returncode": returncode, "detail": "why"}
    lines = log.decode("utf-8", "replace").split("\n")
    observed = {**facts, "found": True, "state_now": state, "lines": lines[: -1 if log.endswith(b"\n") else None]}
    return Seen(0, log, "", facts, {**observed, "followed": None}, log, 1, ())


def test_the_judge_has_nothing_to_say_of_a_run_as_it_should_be() -> None:
    assert judge(CASE, seen(b"".join(PARTS[:9]) + SAVED)).problems == ()


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (b"".join([*PARTS[:4], *PARTS[5:9]]) + SAVED, "gap or a repeat"),
        (b"".join([*PARTS[:4], *PARTS[3:9]]) + SAVED, "gap or a repeat"),
        (b"".join(PARTS[:9])[:-1] + SAVED, "gap or a repeat"),
    ],
)
def test_the_judge_sees_gaps_and_repeats(log: bytes, problem: str) -> None:
    assert problem in str(judge(CASE, seen(log)).problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shown": b"".join(PARTS[:8])}, "shown and output.log differ"),
        ({"log": None}, "there is no output.log"),
        ({"told": None}, "run did not return"),
        ({"told": {"state": "cancelled", "returncode": 0, "detail": ""}}, "the caller was told"),
        ({"observed": None}, "cannot be found"),
        ({"leftovers": ("process 1 is left",)}, "process 1 is left"),
    ],
)
def test_the_judge_sees_what_others_are_not_told(changes: dict[str, object], problem: str) -> None:
    right = seen(b"".join(PARTS[:9]) + SAVED)

    assert problem in str(judge(CASE, attrs.evolve(right, **changes)).problems)


def test_the_judge_takes_no_fault_for_a_success() -> None:
    assert "not ['cancelled']" in str(judge(CASE, seen(b"".join(PARTS), state="succeeded", returncode=0)).problems)
    assert "exit code 0 with" in str(judge(CASE, seen(b"".join(PARTS), returncode=0)).problems)


def test_the_judge_counts_new_starts() -> None:
    case = attrs.evolve(draw(SEED, ROUND.index(("preemption", "modal"))), manner="saves", code=0)
    parts = [piece for piece, _ in pieces(case.stream, case.lines, case.longest)]
    log = b"".join(parts[:3]) + SAVED + MOVED + b"".join(parts)

    assert judge(case, seen(log, case, "succeeded", 0)).problems == ()
    assert "new starts" in str(judge(case, seen(b"".join(parts), case, "succeeded", 0)).problems)


def test_the_table_counts() -> None:
    other = draw(SEED, ROUND.index(("none", "modal")))
    text = table([Finding(CASE, "cancelled", ()), Finding(CASE, "lost", ("wrong",)), Finding(other, "failed", ())])

    rows = {line.split("  ")[0]: line.split()[-4:] for line in text.splitlines()[1:]}
    assert rows["cancel, local"] == ["2", "1", "1", "1"]
    assert rows["together"] == ["1", "1", "1", "1"]
