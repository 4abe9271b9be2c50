"""Checkpoints: whether a restart continues, how often they are written, and what is already there."""

from __future__ import annotations

from collections.abc import Iterator

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import TRAINING_KINDS, EntrypointKind
from skyrl_modal.skyrl.rules.facts import StartValues
from skyrl_modal.skyrl.rules.paths import checkpoint_folder, writes_checkpoints

_KEPT_CHECKPOINTS = 2


def resumes(values: StartValues) -> bool | None:
    """Return whether a start continues from a checkpoint in its folder; None if it is not known."""
    if values.start.kind is EntrypointKind.SFT:
        resume_from = values.text("resume_from")
        return None if resume_from is None else bool(resume_from)
    mode = values.text("trainer.resume_mode")
    return None if mode is None else mode.lower() not in ("", "none")


def find_resume_off(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if checkpoints are written, but a restart does not continue from them."""
    if (
        not values.run.may_restart
        or values.run.resumes
        or not writes_checkpoints(values)
        or resumes(values) is not False
    ):
        return
    override = "resume_from=latest" if values.start.kind is EntrypointKind.SFT else "trainer.resume_mode=latest"
    yield Finding(
        code="resume-off",
        severity=Severity.WARNING,
        message=f"{values.start.program} does not continue from its checkpoints: after a failure or a preemption it "
        "begins at step 0",
        remedy=f"Pass {override}.",
        overrides=(override,),
    )


def find_no_checkpoints(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if training writes no checkpoints."""
    start = values.start
    if start.kind not in TRAINING_KINDS or not start.writes_results or writes_checkpoints(values) is not False:
        return
    if values.flag("dummy_run_full_ctx") or values.flag("trainer.fully_async.simulate_training"):
        return  # a benchmark
    key = f"{values.prefix}ckpt_interval"
    folder = values.run.kept_folder
    # SFT has no default folder, so the override alone would not be enough.
    fixes = start.kind is not EntrypointKind.SFT or bool(values.text("ckpt_path"))
    more = "" if fixes or folder is None else f" and ckpt_path={folder}/ckpts/NAME"
    yield Finding(
        code="ckpt-interval-off",
        severity=Severity.WARNING,
        message=f"{start.program} writes no checkpoints ({key}={values.integer(key)}): a run that fails, is preempted "
        "or reaches its timeout leaves nothing",
        remedy=f"Pass {key}=10{more}.",
        overrides=(f"{key}=10",) if fixes else (),
    )


def find_long_interval(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the timeout is reached before the first checkpoint, by the step time of earlier runs."""
    interval, seconds = values.integer(f"{values.prefix}ckpt_interval"), values.run.seconds_per_step
    if not writes_checkpoints(values) or interval is None or seconds is None or seconds <= 0:
        return
    if interval * seconds > values.run.timeout:
        possible = max(int(values.run.timeout / seconds / 2), 1)
        override = f"{values.prefix}ckpt_interval={possible}"
        yield Finding(
            code="ckpt-interval-long",
            severity=Severity.WARNING,
            message=f"{values.start.program} writes a checkpoint every {interval} steps. A step of earlier runs took "
            f"{seconds:.0f} s, so that the timeout of {values.run.timeout:.0f} s is reached before the first one",
            remedy=f"Pass {override}, or increase the timeout.",
            overrides=(override,),
        )


def find_kept_checkpoints(values: StartValues) -> Iterator[Finding]:
    """Yield a note if no checkpoint is ever deleted."""
    kept = values.integer(f"{values.prefix}max_ckpts_to_keep")
    if writes_checkpoints(values) and kept is not None and kept < 0:
        override = f"{values.prefix}max_ckpts_to_keep={_KEPT_CHECKPOINTS}"
        yield Finding(
            code="ckpts-all-kept",
            severity=Severity.NOTE,
            message=f"{values.start.program} keeps all checkpoints. One has 12 to 16 bytes for each parameter",
            remedy=f"Pass {override}.",
            overrides=(override,),
        )


def find_existing_checkpoints(values: StartValues) -> Iterator[Finding]:
    """Yield findings about a checkpoint folder that exists, or that another run uses."""
    folder = checkpoint_folder(values)
    if folder is None or values.start.kind not in TRAINING_KINDS:
        return
    other = values.run.used_checkpoint_folders.get(folder.rstrip("/"))
    if other is not None:
        yield Finding(
            code="ckpt-in-use",
            severity=Severity.ERROR,
            message=f"{values.start.program} writes its checkpoints to {folder}, and so does the run {other}, which "
            "has not ended",
            remedy=f"Pass another {values.prefix}ckpt_path, or stop the other run first.",
        )
    if values.run.path_exists(folder):
        continues = values.run.resumes or resumes(values)
        yield Finding(
            code="ckpt-exists",
            severity=Severity.WARNING if continues is False else Severity.NOTE,
            message=f"{folder} exists. {values.start.program} "
            + (
                "ignores it, and may be stopped by newer checkpoints in it"
                if continues is False
                else "continues from it"
            ),
            remedy=f"Pass another {values.prefix}ckpt_path to begin at step 0." if continues is not None else "",
        )
