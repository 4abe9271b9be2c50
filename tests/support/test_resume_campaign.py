"""Trainings that are killed, with the whole launcher and a real trainer, and tests of the campaign's checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.resume_campaign import Case, Finding, Kill, Moment, Target, check_rows, draw, parse, render, table
from tests.support.resume_runner import ResumeEnvironment

SEED = 16
#: What each kind of kill does, in as few runs as possible.
SAMPLE = {
    "local": (
        (Kill(Target.TRAINER, Moment.FILE, 8), Kill(Target.TRAINER, Moment.POINTER, 2)),
        (Kill(Target.TRAINER, Moment.START, 1), Kill(Target.SUPERVISOR, Moment.FILE, 10)),
        (Kill(Target.TRAINER, Moment.STEP, 11), Kill(Target.TRAINER, Moment.SAVED, 2)),
    ),
    "modal": (
        (Kill(Target.CONTAINER, Moment.FILE, 9), Kill(Target.TRAINER, Moment.POINTER, 2)),
        (Kill(Target.PREEMPTION, Moment.POINTER, 2), Kill(Target.TRAINER, Moment.STEP, 9)),
        (Kill(Target.CONTAINER, Moment.SAVED, 2), Kill(Target.PREEMPTION, Moment.STEP, 7)),
    ),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResumeEnvironment]:
    """Yield an environment for trainings."""
    with ResumeEnvironment(tmp_path_factory.mktemp("resume")) as environment:
        yield environment


@pytest.mark.timeout(560)
@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["local", "modal"])
def test_killed_training(backend: str, number: int, environment: ResumeEnvironment) -> None:
    """A training that is killed twice has the metrics of one that is not, in one W&B run."""
    finding = environment.run(Case(SEED, number, backend, False, 1 + number % 2, SAMPLE[backend][number]))

    assert finding.violations == ()
    assert finding.kills == 2


@pytest.mark.slow
@pytest.mark.timeout(560)
@pytest.mark.parametrize("number", range(50))
@pytest.mark.parametrize("backend", ["local", "modal"])
def test_training_with_random_kills(backend: str, number: int, environment: ResumeEnvironment) -> None:
    """So has one that is killed one to five times, also with Ray, at any moment."""
    finding = environment.run(draw(SEED, number, backend))

    assert finding.violations == ()
    assert finding.kills


def test_case_depends_on_seed_and_number_only() -> None:
    """A number of a seed is always the same case. All targets and moments occur."""
    cases = [draw(SEED, number, backend) for backend in ("local", "modal") for number in range(50)]

    assert cases[60] == draw(SEED, 10, "modal")
    assert cases[60] != draw(SEED + 1, 10, "modal")
    assert {kill.target for case in cases for kill in case.kills} == set(Target)
    assert {kill.moment for case in cases for kill in case.kills} == set(Moment)
    assert {len(case.kills) for case in cases} == {1, 2, 3, 4, 5}
    assert any(case.ray for case in cases)


def test_differences_of_metrics_are_found() -> None:
    """A missing step, an additional one, and another value are each a difference."""
    rows = {1: {"reward": 0.5}, 2: {"reward": 0.75}}

    assert list(check_rows(rows, dict(rows))) == []
    assert list(check_rows(rows, {1: {"reward": 0.5}})) == ["step 2 is missing in the metrics"]
    assert list(check_rows({2: rows[2]}, rows)) == ["step 1 is too much in the metrics"]
    [difference] = check_rows(rows, {**rows, 2: {"reward": 0.75000001}})
    assert "reward: 0.75000001 instead of 0.75" in difference


def test_table_counts_kills() -> None:
    """The table has the number of kills by target and moment, without those that did not happen."""
    kills = SAMPLE["local"][0]
    text = table([Finding(Case(1, 1, "local", False, 1, kills), 1, 2, 1.0)])

    assert text.splitlines()[1].split() == ["local", "trainer", "1"]


def test_page_is_written_from_the_output() -> None:
    """The page has the kills in the output. An output with violations, or of other cases, is refused."""
    case = draw(7, 0, "modal")
    line = f"    20 s    1/1    0  {case.name}: 1 kills, 2 attempts, 15.5 s\n"

    findings = parse(f"seed 7, 1 runs\n{line}")

    assert findings == [Finding(case, 1, 2, 15.5)]
    assert f"| modal | {case.kills[0].target} |" in render(findings)
    with pytest.raises(ValueError, match="is another one now"):
        parse(f"seed 8, 1 runs\n{line}")
    with pytest.raises(ValueError, match="there were violations"):
        parse(f"seed 7, 1 runs\n{line}    VIOLATION nothing was killed\n")
