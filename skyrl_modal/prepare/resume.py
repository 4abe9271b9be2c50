"""``resume="auto"``: which trainers of a command can be continued, and where their arguments are inserted."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from skyrl_modal.dataclass import replace
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.prepare.command_starts import CheckedState, facts_of_run, schema_of_checkout, with_run_id
from skyrl_modal.prepare.fix import find_positions
from skyrl_modal.protocol.resume import ResumeRecord, ResumeTarget, TrainerKind, resume_overrides
from skyrl_modal.skyrl.resolution.records import KINDS_WITH_TRACKER, TRAINING_KINDS, EntrypointKind
from skyrl_modal.skyrl.rules.checkpoints import resumes
from skyrl_modal.skyrl.rules.facts import RunFacts, StartValues
from skyrl_modal.skyrl.rules.gpus import group_gpus
from skyrl_modal.skyrl.rules.paths import checkpoint_folder

if TYPE_CHECKING:
    from skyrl_modal.gitfiles.result_cache import ResultCache
    from skyrl_modal.prepare.plan import Plan
    from skyrl_modal.protocol.job import Job

#: The code of the finding about a run whose checkpoints cannot be kept. It is refused.
NO_VOLUME = "resume-without-volume"
#: Any checkpoint, to find out which arguments reach a trainer.
_EXAMPLE_STEP = "global_step_1"
_GROUPS = ("policy", "critic")
_STRATEGIES = {"fsdp": "fsdp", "fsdp2": "fsdp", "megatron": "megatron"}


@frozen
class _Trainer:
    """A start that trains, and the folder of its checkpoints."""

    number: int
    values: StartValues
    folder: str

    @property
    def kind(self) -> TrainerKind:
        return TrainerKind(self.values.start.kind)

    @property
    def folder_key(self) -> str:
        return f"{self.values.prefix}ckpt_path"

    def overrides(self, *, is_shared: bool) -> dict[str, str]:
        return resume_overrides(self.kind, posixpath.join(self.folder, _EXAMPLE_STEP), is_shared=is_shared)


def with_resume(plan: Plan, cache: ResultCache) -> Plan:
    """Return a plan whose job has what its container needs to continue trainers, with findings about what it cannot do.

    Args:
        plan: The plan of a run with ``resume="auto"``.
        cache: The user's cache of results.
    """
    facts = facts_of_run(plan.job, plan.spec, plan.selections, plan.state or CheckedState())
    schema = schema_of_checkout(plan.job, plan.selections)
    starts = plan.resolution.starts
    values = {
        number: StartValues(start, facts, starts[:number], schema)
        for number, start in enumerate(starts)
        if start.kind in TRAINING_KINDS
    }
    findings: list[Finding] = []
    if not values:
        findings.append(_no_trainer(plan))
    trainers = []
    for number, each in values.items():
        folder = checkpoint_folder(each)
        if folder is None or not folder.startswith("/"):
            findings.append(_no_folder(each, folder))
        else:
            trainers.append(_Trainer(number, each, posixpath.normpath(folder)))
    targets = list(_targets(plan, cache, trainers))
    for trainer, target in targets:
        finding = _varying_folder(trainer) if target is None else _finding(trainer, target, facts)
        findings += [] if finding is None else [finding]
    record = ResumeRecord(
        targets=tuple(target for trainer, target in targets if target is not None and _has_effect(trainer, target))
    )
    resume = record if record.targets else None
    # A second program that logs to W&B would write into the run of the first one.
    is_only_one = sum(start.kind in KINDS_WITH_TRACKER for start in starts) == 1
    return evolve(
        plan,
        job=replace(plan.job, resume=resume, continues_wandb_run=resume is not None and is_only_one),
        findings=(*plan.findings, *dict.fromkeys(findings)),
    )


def _targets(
    plan: Plan, cache: ResultCache, trainers: Sequence[_Trainer]
) -> Iterator[tuple[_Trainer, ResumeTarget | None]]:
    """Yield what the container needs to know of each trainer; None for one whose folder is not the same each time."""
    if not trainers:
        return
    # Trainers of one folder follow each other: the second one continues from what the first one has written.
    uses = Counter(trainer.folder for trainer in trainers)
    shared = {trainer.number for trainer in trainers if uses[trainer.folder] > 1}
    found = find_positions(plan, cache, _wanted(trainers, shared))
    positions = dict(found.by_start)
    open_trainers = {trainer.number for trainer in trainers} - set(positions)
    if open_trainers and len(trainers) > 1:
        # A script that passes its arguments on to several trainers: they cannot have a checkpoint each.
        shared |= open_trainers
        for number, point in find_positions(plan, cache, _wanted(trainers, shared)).by_start.items():
            positions.setdefault(number, point)
    for trainer in trainers:
        if trainer.folder_key in found.varying:
            yield trainer, None
        else:
            position = positions.get(trainer.number)
            yield trainer, _target(trainer, plan.job, position, is_shared=trainer.number in shared)


def _wanted(trainers: Sequence[_Trainer], shared: set[int]) -> dict[int, dict[str, str]]:
    return {trainer.number: trainer.overrides(is_shared=trainer.number in shared) for trainer in trainers}


def _target(trainer: _Trainer, job: Job, position: int | None, *, is_shared: bool) -> ResumeTarget:
    values = trainer.values
    prefix = values.prefix
    critic = None if trainer.kind is TrainerKind.SFT else values.text("trainer.critic.model.path")
    return ResumeTarget(
        kind=trainer.kind,
        folder=with_run_id(trainer.folder, job),
        program=values.start.program,
        position=position,
        is_shared=is_shared,
        strategy=_STRATEGIES.get(values.text(f"{prefix}strategy") or "", ""),
        has_critic=False if trainer.kind is TrainerKind.SFT else None if critic is None else bool(critic),
        world_sizes=_world_sizes(values),
    )


def _world_sizes(values: StartValues) -> Mapping[str, int]:
    """Return the numbers of GPUs that save and load a model, as far as they are known."""
    if values.run.image and values.run.gpus is None:
        return {}  # requests with different numbers: the arguments may depend on the one that is fulfilled
    if values.start.kind is EntrypointKind.SFT:
        numbers = [values.integer(f"placement.{name}") for name in ("num_nodes", "num_gpus_per_node")]
        return {} if None in numbers else {"policy": math.prod(number or 0 for number in numbers)}
    return {group: count for group in _GROUPS if (count := group_gpus(values, group)) is not None}


def _has_effect(trainer: _Trainer, target: ResumeTarget) -> bool:
    return target.position is not None or resumes(trainer.values) is True


def _finding(trainer: _Trainer, target: ResumeTarget, facts: RunFacts) -> Finding | None:
    program = trainer.values.start.program
    if not _has_effect(trainer, target):
        example = " ".join(f"{key}=…" for key in trainer.overrides(is_shared=target.is_shared))
        return _without_effect(
            f"{example} cannot be passed to {program} with the command: a script does not pass its arguments on, or "
            "other programs would get them",
            'End the call of the trainer in the script with "$@".',
        )
    if facts.is_kept(target.folder):
        return None
    folder = facts.kept_folder
    message = f"{program} writes its checkpoints to {target.folder}, which is on no writable volume"
    if folder is None:
        return Finding(
            code=NO_VOLUME,
            severity=Severity.ERROR,
            message=f"{message}: there is none, so that nothing remains from which another container can continue",
            remedy="Mount a writable volume, or omit resume.",
        )
    return Finding(
        code="resume-not-kept",
        severity=Severity.WARNING,
        message=f"{message}: only attempts in the same container continue from them",
        remedy=f"Pass {trainer.folder_key}={folder}/ckpts/NAME, or --fix.",
    )


def _no_trainer(plan: Plan) -> Finding:
    unresolved = plan.resolution.unresolved
    reason = f" ({unresolved})" if unresolved else ""
    return _without_effect(
        f"no trainer of SkyRL was found in the command{reason}",
        "Omit resume, or start the trainer by its module or script.",
    )


def _no_folder(values: StartValues, folder: str | None) -> Finding:
    if folder is None:
        reason = "writes no checkpoints, or it is not known where"
    elif "://" in folder:
        reason = f"writes its checkpoints to {folder}, and only checkpoints in folders are examined"
    else:
        reason = f"writes its checkpoints to {folder}, which is relative to Ray's copy of the checkout"
    key = values.prefix
    return _without_effect(
        f"{values.start.program} {reason}", f"Pass {key}ckpt_interval=N and {key}ckpt_path=FOLDER_ON_A_VOLUME."
    )


def _varying_folder(trainer: _Trainer) -> Finding:
    return _without_effect(
        f"{trainer.values.start.program} writes its checkpoints to another folder each time it is started, such as "
        f"{trainer.folder}",
        f"Pass {trainer.folder_key}=FOLDER without the time or a random number.",
    )


def _without_effect(message: str, remedy: str) -> Finding:
    return Finding(
        code="resume-without-effect",
        severity=Severity.WARNING,
        message=f'resume="auto" has no effect: {message}. Further attempts start the command as it is',
        remedy=remedy,
    )
