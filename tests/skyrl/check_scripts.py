"""Resolve all scripts of a SkyRL checkout, and compare the findings with the labels of 30 of them.

Usage: python -m tests.skyrl.check_scripts CHECKOUT [--details] [--fix]

With --fix, the overrides that remove findings are appended to each command, and it is resolved again.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attrs import evolve

from skyrl_modal import Launcher, Plan, VolumeSpec
from skyrl_modal.dataclass import replace
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.gitfiles.result_cache import ResultCache
from skyrl_modal.prepare.command_starts import find_problems_of_starts, resolve_command
from skyrl_modal.prepare.fix import Fix, find_fix
from skyrl_modal.prepare.staging import Preparation
from skyrl_modal.protocol.job import Job
from skyrl_modal.skyrl.resolution.records import EntrypointKind, Resolution

#: Scripts that are resolved at the same time. A resolution mostly waits for its processes.
_FIX_THREADS = 3
LABELS = Path(__file__).with_name("labels.toml")


def main(checkout: Path, *, details: bool, fix: bool) -> int:
    """Print the counts, the times, and precision and recall. Return 1 if a labelled script differs."""
    labels = tomllib.loads(LABELS.read_text())
    declared = labels["launcher"]
    launcher = Launcher(
        checkout=checkout,
        backend=declared["backend"],
        gpu=declared["gpu"],
        nodes=declared["nodes"],
        retries=declared["retries"],
        timeout=declared["timeout"],
        secrets=declared["secrets"],
        volumes=[VolumeSpec(mount_path=declared["volume"])],
    )
    plan = Preparation(launcher, declared["backend"]).plan("true")
    scripts = sorted(name for name in plan.selections[0].files if name.endswith(".sh"))
    if fix:
        return _fix_all(plan, scripts, details=details)
    found: dict[str, tuple[list[str], list[str]]] = {}
    seconds: list[float] = []
    processor_seconds: list[float] = []
    for script in scripts:
        began, used = time.perf_counter(), _processor_seconds()
        job = replace(plan.job, command=f"bash {script}")
        resolution = resolve_command(job, launcher, plan.selections)
        findings, _ = find_problems_of_starts(resolution, job, launcher, plan.selections)
        seconds.append(time.perf_counter() - began)
        processor_seconds.append(_processor_seconds() - used)
        kinds = [start.kind.value for start in resolution.entrypoints]
        found[script] = (kinds, list(dict.fromkeys(finding.code for finding in findings)))
        if details:
            print(f"{script}: {kinds} {seconds[-1]:.2f} s {resolution.recording.end} {resolution.unresolved}")
            for finding in findings:
                print(f"    {finding.severity:8} {finding.code}: {finding}")
    _print_counts(found)
    _print_times("seconds", seconds)
    _print_times("seconds of processor time", processor_seconds)
    return _compare(found, labels["scripts"])


def _fix_all(plan: Plan, scripts: Sequence[str], *, details: bool) -> int:
    """Resolve each script with its overrides. Return 1 if a finding whose override was appended is still there."""
    before, after, reported, left = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    changed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_FIX_THREADS) as pool:
        cache = ResultCache(Path(folder))
        for script, (found, made, remaining) in zip(
            scripts, pool.map(lambda script: _fix(plan, script, cache), scripts), strict=True
        ):
            changed += bool(made.overrides)
            before.update({item.code for item in found if _is_fixable(item)})
            after.update({item.code for item in remaining if _is_fixable(item)})
            reported.update({item.code for item in found if _is_fixable(item) and made.findings})
            still = {item.code for item in remaining if set(item.overrides) & set(made.overrides)}
            new = {item.code for item in remaining} - {item.code for item in found}
            left.update(still | new)
            if details or still or new:
                print(
                    f"{script}: {made.overrides}, left {sorted(still)}, new {sorted(new)}", *made.findings, sep="\n    "
                )
    print(f"{len(scripts)} scripts, {changed} commands with overrides")
    for code, count in before.most_common():
        print(f"  {count:4} {code} before, {after[code]} after; {reported[code]} in scripts with a report")
    print(f"{left.total()} findings whose override was appended are still there, or are new")
    return 1 if left else 0


def _fix(plan: Plan, script: str, cache: ResultCache) -> tuple[list[Finding], Fix, list[Finding]]:
    """Return the findings about a script, its fix, and the findings about the fixed command."""

    def find(job: Job) -> tuple[Resolution, list[Finding]]:
        resolution = resolve_command(job, plan.spec, plan.selections, cache=cache)
        return resolution, find_problems_of_starts(resolution, job, plan.spec, plan.selections)[0]

    job = replace(plan.job, command=f"bash {script}")
    resolution, found = find(job)
    made = find_fix(evolve(plan, job=job, resolution=resolution, findings=tuple(found)), cache)
    return found, made, find(replace(job, command=made.command))[1]


def _is_fixable(finding: Finding) -> bool:
    return bool(finding.overrides) and finding.severity is not Severity.NOTE


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _print_times(unit: str, values: list[float]) -> None:
    ordered = sorted(values)
    print(f"{unit} a script: median {ordered[len(ordered) // 2]:.3f}, max {ordered[-1]:.3f}, sum {sum(ordered):.1f}")


def _print_counts(found: dict[str, tuple[list[str], list[str]]]) -> None:
    started = [name for name, (kinds, _) in found.items() if kinds]
    training = {kind.value for kind in EntrypointKind} - {"other", "dataset", "tinker", "serve", "generate"}
    trainers = [name for name, (kinds, _) in found.items() if training & set(kinds)]
    print(f"{len(found)} scripts; {len(started)} start an entrypoint of SkyRL, {len(trainers)} train")
    for kind, count in Counter(kind for kinds, _ in found.values() for kind in set(kinds)).most_common():
        print(f"  {count:4} start {kind}")
    for code, count in Counter(code for _, codes in found.values() for code in codes).most_common():
        print(f"  {count:4} {code}")


def _compare(found: dict[str, tuple[list[str], list[str]]], labels: dict[str, Any]) -> int:
    right = missing = false = 0
    differing = 0
    for script, label in labels.items():
        kinds, codes = found[script]
        expected, actual = set(label["findings"]), set(codes)
        right += len(expected & actual)
        missing += len(expected - actual)
        false += len(actual - expected)
        if expected != actual or kinds != label["starts"]:
            differing += 1
            print(f"{script}: missing {sorted(expected - actual)}, false {sorted(actual - expected)}, starts {kinds}")
    print(f"labels: {right} findings right, {missing} missing, {false} false, in {len(labels)} scripts")
    print(f"precision {right / max(right + false, 1):.3f}, recall {right / max(right + missing, 1):.3f}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), details="--details" in sys.argv[2:], fix="--fix" in sys.argv[2:]))
