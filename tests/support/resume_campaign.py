"""Make trainings that are killed several times, and compare them with one that is not: ``resume="auto"``.

    python -m tests.support.resume_campaign --runs 50 --backend local
    python -m tests.support.resume_campaign --seed 7 --case 12        # one case again
    python -m tests.support.resume_campaign --page OUTPUT...          # write docs/generated/resume_campaign.md

Each run trains the policy of the quickstart. One to five times, a process is killed at a moment that the trainer
announces. A case depends on the seed and its number only.
"""

from __future__ import annotations

import argparse
import collections
import enum
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generated" / "resume_campaign.md"
#: Steps of a training, between its checkpoints, and in an epoch (512 problems in batches of 32).
STEPS, INTERVAL = 80, 4
#: One case in this number has Ray.
RAY_INTERVAL = 8


class Target(enum.StrEnum):
    """What is killed."""

    TRAINER = "trainer"
    RAYLET = "raylet"
    #: Locally the supervisor, without which the run is lost: the same command is submitted again.
    SUPERVISOR = "supervisor"
    CONTAINER = "container"
    #: Not killed immediately: Modal sends a signal, and starts another container.
    PREEMPTION = "preemption"


class Moment(enum.StrEnum):
    """When it is killed."""

    START = "start"
    STEP = "step"
    #: A file of a checkpoint is written in half.
    FILE = "checkpoint file"
    #: The file with the latest step is empty.
    POINTER = "pointer"
    SAVED = "after a checkpoint"


@attrs.frozen
class Kill:
    """One kill.

    Attributes:
        target: What is killed.
        moment: When.
        number: The number of such moments since the start of the trainer.
    """

    target: Target
    moment: Moment
    number: int

    def __str__(self) -> str:
        return f"{self.target} at {self.moment} {self.number}"


@attrs.frozen
class Case:
    """One run with kills.

    Attributes:
        seed: The seed of the campaign.
        number: The number of the case.
        backend: ``"local"`` or ``"modal"``.
        ray: Whether the run has Ray.
        ranks: Number of parts in which checkpoints are saved.
        kills: The kills, one for each start of the trainer.
    """

    seed: int
    number: int
    backend: str
    ray: bool
    ranks: int
    kills: tuple[Kill, ...]

    @property
    def name(self) -> str:
        """The case in one line."""
        return f"{self.backend}{', Ray' if self.ray else ''}: {'; '.join(map(str, self.kills))}"


@attrs.frozen
class Finding:
    """What was seen in a case.

    Attributes:
        case: The case.
        kills: Number of kills that happened. A training may end before the last ones.
        attempts: Number of attempts of all runs together.
        seconds: Duration.
        violations: What should not have happened.
    """

    case: Case
    kills: int
    attempts: int
    seconds: float
    violations: tuple[str, ...] = ()


#: Range of the number of moments. Except at the start, each attempt trains steps that no earlier one has trained.
_NUMBERS: Mapping[Moment, tuple[int, int]] = {
    Moment.START: (1, 1),
    Moment.STEP: (INTERVAL + 2, 3 * INTERVAL),
    Moment.POINTER: (2, 3),
    Moment.SAVED: (2, 3),
}
_MOMENTS = (Moment.STEP, Moment.STEP, Moment.FILE, Moment.FILE, Moment.POINTER, Moment.SAVED)
#: How often a target can be killed in one case: Modal gives up after some containers that die.
_LIMITS = {Target.SUPERVISOR: 1, Target.CONTAINER: 2}


def draw(seed: int, number: int, backend: str) -> Case:
    """Return a case."""
    rng = random.Random(f"{seed} {number} {backend}")
    ray = number % RAY_INTERVAL == RAY_INTERVAL - 1
    ranks = rng.choice((1, 1, 2))
    targets = [Target.TRAINER]
    targets += [Target.SUPERVISOR] if backend == "local" else [Target.CONTAINER, Target.PREEMPTION]
    targets += [Target.RAYLET] * 2 if ray else []
    kills: list[Kill] = []
    for position in range(rng.randint(1, 5)):
        used = collections.Counter(kill.target for kill in kills)
        target = rng.choice([each for each in targets if used[each] < _LIMITS.get(each, 5)])
        # A start without a new step uses a retry, and two after another end the run: one in each case, at any place.
        is_early = rng.random() < 0.1 and not any(kill.moment is Moment.START for kill in kills)
        moment = Moment.START if is_early else rng.choice(_MOMENTS)
        files = 3 * ranks + 2
        first, last = (files + 1, 2 * files) if moment is Moment.FILE else _NUMBERS[moment]
        if ray and position == 0 and not kills:
            target = Target.RAYLET
        kills.append(Kill(target, moment, rng.randint(first, last)))
    return Case(seed, number, backend, ray, ranks, tuple(kills))


def check_rows(expected: Mapping[int, Mapping[str, float]], found: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    """Yield the differences between the metrics of two trainings."""
    for step in sorted(expected.keys() | found.keys()):
        first, second = expected.get(step), found.get(step)
        if first is None or second is None:
            yield f"step {step} is {'missing' if second is None else 'too much'} in the metrics"
        elif first != second:
            keys = [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]
            values = ", ".join(f"{key}: {second.get(key)} instead of {first.get(key)}" for key in sorted(keys)[:3])
            yield f"step {step} has other metrics: {values}"


def table(findings: Iterable[Finding]) -> str:
    """Return a table with the number of kills by target and moment."""
    counts = _count_kills(findings)
    lines = [f"{'':20}" + "".join(f"{moment:>20}" for moment in Moment)]
    for backend, target in dict.fromkeys((backend, target) for backend, target, _ in sorted(counts)):
        row = "".join(f"{counts[backend, target, moment] or '':>20}" for moment in Moment)
        lines.append(f"{f'{backend} {target}':20}{row}")
    return "\n".join(lines)


_TEMPLATE = """\
<!-- Generated by `python -m tests.support.resume_campaign --page`; do not edit. -->
{runs}, {ray} of them with Ray, and {kills} kills. Each number is that of the kills of a process at a moment.

| backend | process | {moments} |
|---|---|{columns}
{rows}
"""


def render(findings: Sequence[Finding]) -> str:
    """Return the page with the number of kills by backend, target and moment."""
    counts = _count_kills(findings)
    backends = collections.Counter(finding.case.backend for finding in findings)
    rows = [
        f"| {backend} | {target} | "
        + " | ".join(str(counts[backend, target, moment] or "") for moment in Moment)
        + " |"
        for backend in sorted(backends)
        for target in Target
        if any(counts[backend, target, moment] for moment in Moment)
    ]
    return _TEMPLATE.format(
        runs=" and ".join(f"{count} trainings on the {name} backend" for name, count in sorted(backends.items())),
        kills=sum(finding.kills for finding in findings),
        ray=sum(finding.case.ray for finding in findings),
        moments=" | ".join(Moment),
        columns="---:|" * len(Moment),
        rows="\n".join(rows),
    )


def _count_kills(findings: Iterable[Finding]) -> collections.Counter[tuple[str, Target, Moment]]:
    counts: collections.Counter[tuple[str, Target, Moment]] = collections.Counter()
    for finding in findings:
        for kill in finding.case.kills[: finding.kills]:
            counts[finding.case.backend, kill.target, kill.moment] += 1
    return counts


def parse(output: str) -> list[Finding]:
    """Return the findings in the output of this program, of one or several campaigns.

    Raises:
        ValueError: There was a violation, or a case is another one now.
    """
    findings, seed = [], 0
    for line in output.splitlines():
        if "VIOLATION" in line:
            raise ValueError("there were violations")
        begin = re.fullmatch(r"seed (\d+), \d+ runs", line)
        if begin:
            seed = int(begin[1])
        found = re.fullmatch(r" *\d+ s +\d+/\d+ +(\d+)  (.*): (\d+) kills, (\d+) attempts, ([\d.]+) s", line)
        if found:
            case = draw(seed, int(found[1]), re.split(r"[:,]", found[2])[0])
            if case.name != found[2]:
                raise ValueError(f"the case {case.number} is another one now: {case.name}")
            findings.append(Finding(case, int(found[3]), int(found[4]), float(found[5])))
    return findings


def main() -> int:
    """Run the campaign. Return 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.resume_campaign", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="number of runs for each backend (default: 50)")
    parser.add_argument("--seed", type=int, help="seed of the cases (default: a random one)")
    parser.add_argument("--backend", choices=("local", "modal"), help="this backend only")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--case", type=int, help="the case with this number only")
    parser.add_argument("--page", nargs="+", type=Path, metavar="OUTPUT", help=f"write {PAGE.name} from these outputs")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(render(parse("".join(path.read_text() for path in options.page))))
        return 0
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    all_numbers = range(options.first, options.first + options.runs)
    numbers = all_numbers if options.case is None else [options.case]
    backends = [options.backend] if options.backend else ["local", "modal"]
    cases = [draw(seed, number, backend) for backend in backends for number in numbers]
    print(f"seed {seed}, {len(cases)} runs", flush=True)
    from tests.support.resume_runner import ResumeEnvironment  # it imports this module

    # A shell without job control starts background processes with SIGINT ignored, which containers would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Exit through the finally blocks, which end all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begin, findings = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory(prefix="skyrl-resume-", ignore_cleanup_errors=True) as folder,
        ResumeEnvironment(Path(folder)) as environment,
    ):
        for case in cases:
            finding = environment.run(case)
            findings.append(finding)
            print(
                f"{time.monotonic() - begin:6.0f} s  {len(findings):3d}/{len(cases)}  {case.number:3d}  {case.name}: "
                f"{finding.kills} kills, {finding.attempts} attempts, {finding.seconds:.1f} s",
                flush=True,
            )
            for violation in finding.violations:
                print(f"    VIOLATION {violation}", flush=True)
    violating = [finding for finding in findings if finding.violations]
    print(f"\nseed {seed}\n{table(findings)}")
    print(f"{len(findings)} runs, {sum(finding.kills for finding in findings)} kills, {len(violating)} with violations")
    for finding in violating:
        case = finding.case
        arguments = f"--seed {case.seed} --backend {case.backend} --case {case.number}"
        print(f"  python -m tests.support.resume_campaign {arguments}")
    return 1 if violating else 0


if __name__ == "__main__":
    # The module that the runner imports has other classes than the one that is executed.
    from tests.support.resume_campaign import main

    sys.exit(main())
