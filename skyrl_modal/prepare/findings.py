"""Problems that are found in a plan before its run starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.mount import Selection
from skyrl_modal.prepare.home_paths import find_home_paths
from skyrl_modal.protocol.job import MODAL_ENDING_GRACE, Job, Limits
from skyrl_modal.skyrl.scripts import find_ray_calls, scripts_of_command


def find_problems(job: Job, selections: Sequence[Selection], texts: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Yield what may make a run fail, or do something that its author does not expect.

    Args:
        job: The run.
        selections: The files of the job's mounts, in their order.
        texts: The command and the scripts that it runs, as ``texts_of_command`` returns them.
    """
    yield from _nodes_without_ray(job)
    yield from _ray_calls(job, texts)
    yield from find_home_paths(job, texts)
    for selection in selections:
        yield from _excluded_env_files(selection)
        for warning in selection.warnings:
            yield Finding(code="selection", severity=Severity.WARNING, message=warning)
        for note in selection.notes:
            yield Finding(code="selection", severity=Severity.NOTE, message=note)


def checkout_finding(warning: str) -> Finding:
    """Return the finding about a checkout whose state git could not read within its limits."""
    return Finding(code="commit-unknown", severity=Severity.WARNING, message=warning)


def backend_finding(warning: str) -> Finding:
    """Return the finding about a warning of the backend's check."""
    return Finding(code="backend", severity=Severity.WARNING, message=warning)


def unavailable_finding(error: BackendUnavailable) -> Finding:
    """Return the finding about a backend that cannot execute any run now."""
    return Finding(code="backend-unavailable", severity=Severity.ERROR, message=str(error))


def find_short_grace(limits: Limits) -> Iterator[Finding]:
    """Yield a finding if Modal may leave the command less time to save its files than requested.

    Example:
        >>> len([*find_short_grace(Limits(grace=6))]), len([*find_short_grace(Limits(grace=60))])
        (0, 1)
    """
    if limits.grace > MODAL_ENDING_GRACE:
        yield Finding(
            code="grace-limited",
            severity=Severity.WARNING,
            message=f"grace={limits.grace:g} is longer than Modal allows if it ends the container (a preemption, or "
            f"the end of the app): the command then receives SIGKILL {MODAL_ENDING_GRACE:g} s after SIGINT",
        )


def _nodes_without_ray(job: Job) -> Iterator[Finding]:
    if job.nodes > 1 and job.ray is None:
        yield Finding(
            code="nodes-without-ray",
            severity=Severity.WARNING,
            message=f"nodes={job.nodes} without Ray: only rank 0 runs the command, and the other nodes are idle",
        )


def texts_of_command(job: Job, selections: Sequence[Selection]) -> list[tuple[str, str]]:
    """Return the command and the mounted scripts that it runs: what each is called, and its text."""
    texts = [("the command", job.command)]
    for mount, selection in zip(job.mounts, selections, strict=True):
        texts += scripts_of_command(
            job.command,
            workdir=job.workdir,
            remote_path=mount.remote_path,
            root=selection.root,
            files=frozenset(selection.files),
        )
    return texts


def _ray_calls(job: Job, texts: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Yield findings about calls of ``ray start`` and ``ray stop`` in the command and in the scripts that it runs."""
    for where, text in texts:
        calls = find_ray_calls(text)
        if "start" in calls and job.ray is not None:
            yield Finding(
                code="ray-start-call",
                severity=Severity.WARNING,
                message=f"{where} calls `ray start`, but the launcher already runs Ray on every node ($RAY_ADDRESS)",
                remedy="Remove the call, or pass ray=None.",
            )
        if "stop" in calls:
            yield Finding(
                code="ray-stop-call",
                severity=Severity.WARNING,
                message=f"{where} calls `ray stop`. It stops all Ray processes that it finds, including the run's own",
                remedy="Remove the call.",
            )


def _excluded_env_files(selection: Selection) -> Iterator[Finding]:
    for path, reason in selection.ignored_env_files():
        yield Finding(
            code="env-file-excluded",
            severity=Severity.WARNING,
            message=f"{path} is excluded ({reason}), but SkyRL's workers read variables from it",
            remedy=f'Pass MountSpec(include=["/{path}"]), or name the variables in secrets=[...].',
        )
