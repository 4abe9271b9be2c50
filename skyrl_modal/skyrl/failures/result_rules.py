"""Failures that the result of a run shows: those of the launcher, the platform and Ray's start."""

from __future__ import annotations

from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.skyrl.failures.rule import RESULT_RECORD, FailureRule, Weight

#: Code, causes of the result, what happened, and what to do. These results are certain: logs are not asked.
_CERTAIN = (
    (
        "preempted",
        FailureCause.PREEMPTED,
        "The platform took the container for another purpose (preemption), and the run did not continue.",
        "Set retries, trainer.resume_mode=latest and trainer.ckpt_path on a volume, and start the run again.",
    ),
    (
        "spend-limit",
        FailureCause.SPEND_LIMIT,
        "The account's spend limit is reached, and the platform refuses all work.",
        "Raise the limit or add a payment method. Waiting does not help.",
    ),
    (
        "over-budget",
        FailureCause.OVER_BUDGET,
        "The run's cost reached its budget.",
        "Increase the budget, and continue with trainer.resume_mode=latest.",
    ),
    (
        "no-capacity",
        FailureCause.NO_CAPACITY,
        "The platform had no machine of the requested type.",
        "Request another type of GPU, fewer GPUs or another region, or try again later.",
    ),
    (
        "start-deadline",
        FailureCause.START_DEADLINE,
        "The command did not start within start_deadline.",
        "Increase start_deadline, request another type of GPU, or try again later.",
    ),
    (
        "lease-expired",
        FailureCause.LEASE_EXPIRED,
        "The process that owned the run was not connected for longer than lease.",
        "Use submit, whose runs do not depend on the caller, or increase lease.",
    ),
    (
        "checkpoint-mismatch",
        FailureCause.CHECKPOINT_MISMATCH,
        "The newest checkpoint was saved with another number of GPUs (FSDP) or another strategy, and cannot be loaded.",
        "Request the same GPUs and strategy as the run that saved it, or pass another ckpt_path.",
    ),
    (
        "checkpoints-in-use",
        FailureCause.CHECKPOINTS_IN_USE,
        "Another run that has not ended writes to the same checkpoint folder.",
        "Pass another ckpt_path, or stop the other run first.",
    ),
    ("stopped", FailureCause.STOPPED, "The run was asked to stop.", "Nothing, if it was intended."),
    (
        "ray-stopped",
        FailureCause.RAY_STOPPED,
        "The command called ray stop, which ended the run's own Ray.",
        "Remove ray start and ray stop from the script: the launcher starts Ray.",
    ),
    (
        "ray-not-installed",
        FailureCause.RAY_NOT_INSTALLED,
        "There is no ray program where the run executes.",
        "Use an image with Ray, install skyrl-modal[local], or turn Ray off (ray=None, --no-ray).",
    ),
    (
        "ray-dashboard-missing",
        FailureCause.DASHBOARD_NOT_INSTALLED,
        "Ray is installed without its dashboard, and the dashboard was requested.",
        "Install ray[default], or do not request the dashboard.",
    ),
    (
        "ray-too-old",
        FailureCause.RAY_VERSION_MISMATCH,
        "Ray is too old for what was requested.",
        "Use an image with a newer Ray.",
    ),
    (
        "workdir-missing",
        FailureCause.WORKDIR_MISSING,
        "The folder that the command was to run in does not exist in the container.",
        "Check workdir: it must be in the checkout, and may not be ignored by git.",
    ),
    (
        "files-not-unpacked",
        FailureCause.FILES_NOT_UNPACKED,
        "The files of the checkout could not be created in the container.",
        "Start the run again. If it happens each time, the container's disk is too small.",
    ),
)

#: The same, of results that an error in the logs can explain.
_UNCERTAIN = (
    (
        "attempt-timeout",
        FailureCause.ATTEMPT_TIMEOUT,
        "The attempt ran longer than timeout.",
        "Increase timeout, or use retries with trainer.resume_mode=latest and a shorter trainer.ckpt_interval.",
    ),
    (
        "total-timeout",
        FailureCause.TOTAL_TIMEOUT,
        "All attempts together ran longer than the backend allows.",
        "Divide the training into several runs with trainer.resume_mode=latest.",
    ),
    (
        "stalled",
        FailureCause.STALLED,
        "There was no output and no new step for longer than stall.",
        "A collective operation, an environment without a time limit or the engine does not return: see the "
        "logs of all ranks.",
    ),
    (
        "no-progress",
        FailureCause.NO_PROGRESS,
        "Further attempts made no progress.",
        "Look at the error of the first attempt, and reduce trainer.ckpt_interval.",
    ),
    (
        "gpus-missing",
        FailureCause.GPUS_MISSING,
        "A node has fewer GPUs or CPUs than requested, or its driver is not initialized.",
        "Start the run again: it gets another container. Locally, request what the machine has.",
    ),
    (
        "ray-not-ready",
        FailureCause.RAY_NOT_READY,
        "Ray did not become ready.",
        "Look at ray/start.log and ray/raylet.out of all ranks, and increase RaySpec.start_timeout on a slow machine.",
    ),
    (
        "ray-exited",
        FailureCause.RAY_EXITED,
        "Ray ended on a node while the command ran.",
        "Look at ray/raylet.out and machine/memory.jsonl of this rank: most often its memory was full.",
    ),
    (
        "rank-lost",
        FailureCause.RANK_LOST,
        "The connection to a rank was lost: its container ended.",
        "Look at the logs of this rank. Set retries and trainer.resume_mode=latest.",
    ),
    ("rank-failed", FailureCause.RANK_FAILED, "A rank cannot continue.", "Look at supervisor.log of this rank."),
    (
        "container-died",
        FailureCause.CONTAINER_DIED,
        "The container ended without a result: it was killed, most often for its memory, or its machine failed.",
        "Request more memory (memory=..., --memory), and set retries with trainer.resume_mode=latest.",
    ),
    (
        "supervisor-died",
        FailureCause.SUPERVISOR_DIED,
        "The supervisor of the run ended without a result: it was killed, or the machine was restarted.",
        "Look at the memory of this machine, and start the run again.",
    ),
    (
        "volume-commit-failed",
        FailureCause.VOLUME_COMMIT_FAILED,
        "The command succeeded, but its files could not be committed to a volume.",
        "Start the run again. Write fewer and larger files if it happens each time.",
    ),
    (
        "system-error",
        FailureCause.SYSTEM_ERROR,
        "An operating system error outside of the command.",
        "Check free space and permissions of the folder in the message.",
    ),
    (
        "not-started",
        FailureCause.NOT_STARTED,
        "The run could not be started.",
        "Look at the message of the platform.",
    ),
    (
        "command-not-started",
        FailureCause.COMMAND_NOT_STARTED,
        "The command could not be started.",
        "Check that its program exists where it runs, and that the command is not too long.",
    ),
)

_PLATFORM_RULES = (
    FailureRule(
        code="account-refused",
        cause="The account's spend limit is reached, and Modal refuses all work.",
        remedy="Raise the limit or add a payment method. Waiting does not help.",
        terms=("spend limit", "spending limit", "is disabled"),
        pattern=r"[^\n]{0,300}?(?:has exceeded its spend(?:ing)? limit|[Ww]orkspace \S{1,100} is disabled)",
        files=(RESULT_RECORD, "supervisor.log"),
        source="public logs of Modal's users",
        versions="modal 1.0 to 1.6",
    ),
    FailureRule(
        code="image-build-failed",
        cause="Modal could not build the image.",
        remedy="Read the build's log: the last command before the error. Correct ImageSpec.steps.",
        terms=("mage build for ", "image could not be built"),
        pattern=r"[^\n]{0,300}?(?:[Ii]mage build for \S{1,100} failed|image could not be built)",
        files=(RESULT_RECORD, "supervisor.log"),
        source="modal/image.py",
        versions="modal 1.0 to 1.6",
    ),
)


def _rule(values: tuple[str, FailureCause, str, str], weight: Weight) -> FailureRule:
    code, run_cause, cause, remedy = values
    return FailureRule(
        code=code,
        cause=cause,
        remedy=remedy,
        run_causes=frozenset((run_cause,)),
        weight=weight,
        source="the result of the run",
    )


RESULT_RULES = (
    *(_rule(values, Weight.CERTAIN) for values in _CERTAIN),
    *_PLATFORM_RULES,
    *(_rule(values, Weight.CONSEQUENCE) for values in _UNCERTAIN),
)
