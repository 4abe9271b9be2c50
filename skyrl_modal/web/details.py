"""What the page shows about one run beside its metrics and its log: plan, findings, attempts, cost, diagnosis."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.gitfiles.report import format_size
from skyrl_modal.protocol.codec import ProtocolError, encode, from_json
from skyrl_modal.protocol.run_folder import STATUS_FILE
from skyrl_modal.protocol.status import StatusRecord
from skyrl_modal.spec.duration import format_duration
from skyrl_modal.views.findings import by_severity
from skyrl_modal.views.money import format_money
from skyrl_modal.web.plain import plain

if TYPE_CHECKING:
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.run.result import RunResult
    from skyrl_modal.web.observed_run import ObservedRun

_RESULT, _DIAGNOSIS = "result", "diagnosis"
#: Pairs of a label and a value.
Rows = list[tuple[str, str]]


def run_details(observed: ObservedRun, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown about a run.

    Args:
        observed: The run.
        summary: Its summary as JSON.
    """
    run = observed.run
    result = _result(observed)
    details = {
        "summary": summary,
        "plan": plan_sections(run.job, run.backend, summary["gpu"]),
        "findings": [encode(finding) for finding in by_severity(run._findings)],
        "diagnosis": observed.facts.get(_DIAGNOSIS),
        "diagnosis_pending": result is not None and not result.succeeded and _DIAGNOSIS not in observed.facts,
        "cost": _cost(run.job, summary["cost"], result),
        "attempts": _attempts(observed, summary, result),
        "files": {
            "log_path": run.log_path,
            "run_folder": run.job.run_folder,
            "checkpoint_folders": list(run.job.checkpoint_folders),
            "unsaved": [] if result is None else [encode(folder) for folder in result.unsaved],
        },
        "detail": "" if result is None else result.detail,
    }
    return {**plain(details), "summary": summary}


def diagnose(observed: ObservedRun) -> None:
    """Find out why a run failed, unless that is known or it has not failed. It reads up to 500 MB of logs."""
    result = _result(observed)
    if result is None or _DIAGNOSIS in observed.facts:
        return
    from skyrl_modal.run.diagnosis import diagnose_run  # a run that succeeds does not need it

    diagnosis = None if result.succeeded else diagnose_run(result, observed.run._execution)
    if diagnosis is None:
        observed.facts[_DIAGNOSIS] = None
        return
    observed.facts[_DIAGNOSIS] = {
        "code": diagnosis.code,
        "cause": diagnosis.cause,
        "text": "\n".join(f"{evidence.place}: {evidence.text}" for evidence in diagnosis.evidence),
        "remedy": diagnosis.remedy,
    }


def _result(observed: ObservedRun) -> RunResult | None:
    """Return the result of a run; None if it has not ended."""
    if _RESULT not in observed.facts and observed.run.unavailable_reason is None:
        with suppress(SkyRLModalError):  # it has not ended, or cannot be reached now: the summary has the reason
            observed.facts[_RESULT] = observed.run.result(0)
            observed.has_ended = True
    result: RunResult | None = observed.facts.get(_RESULT)
    return result


def _cost(job: Job, total: float | None, result: RunResult | None) -> dict[str, Any]:
    """Return what a run has cost, as a number, as a text, and as label and value pairs."""
    rows: Rows = []
    if job.rate is not None:
        rows.append(("rate", f"{format_money(job.rate.per_hour * job.nodes)} per hour"))
        rows += [("source of the rate", job.rate.source)] if job.rate.source else []
    if job.limits.budget is not None:
        rows.append(("budget", format_money(job.limits.budget)))
    if result is not None and result.container_seconds is not None:
        rows.append(("time of all containers", f"{result.container_seconds:,.0f} s"))
    return {"total": total, "text": format_money(total), "rows": rows}


def _attempts(observed: ObservedRun, summary: dict[str, Any], result: RunResult | None) -> list[dict[str, Any]]:
    """Return one entry for each attempt that was started, with what it has logged."""
    logged = {}
    with suppress(SkyRLModalError, OSError):
        logged = {item.attempt: item for item in observed.metrics().attempts()}
    count = max([*logged, 0])
    if result is not None:
        count = max(count, result.attempts)
    elif observed.run.unavailable_reason is None:
        with suppress(SkyRLModalError, OSError, ProtocolError):
            count = max(count, from_json(StatusRecord, observed.run._execution.read_file(STATUS_FILE)).attempt)
    attempts = []
    for number in range(1, min(count, 1000) + 1):
        item, is_last = logged.get(number), number == count
        attempts.append(
            {
                "attempt": number,
                "state": summary["state"] if is_last else "failed",
                "returncode": result.returncode if is_last and result is not None else None,
                "cause": summary["cause"] if is_last else None,
                "first_step": None if item is None else item.first_step,
                "last_step": None if item is None else item.last_step,
                "started_at": None if item is None else item.started_at,
                "ended_at": None if item is None else item.ended_at,
            }
        )
    return attempts


def plan_sections(job: Job, backend: str, gpu: list[str]) -> list[dict[str, Any]]:
    """Return what was requested for a run as sections of label and value pairs. No value of a variable is in it."""
    command: Rows = [("command", job.command), ("workdir", job.workdir)]
    command += [("name", job.name)] if job.name is not None else []
    command += [("tags", ", ".join(job.tags))] if job.tags else []
    files = [(mount.remote_path, f"{mount.files:,} files, {format_size(mount.bytes)}") for mount in job.mounts]
    if job.checkout is not None and job.checkout.commit is not None:
        changed = "" if not job.checkout.changed_files else f", {job.checkout.changed_files:,} changed files"
        files.append(("checkout", f"commit {job.checkout.commit}{changed}"))
    hardware: Rows = [("backend", backend), ("nodes", str(job.nodes)), ("gpu", " or ".join(gpu) or "none requested")]
    hardware += [("image", job.image)] if job.image else []
    hardware.append(("ray", "none" if job.ray is None else "with its dashboard" if job.ray.dashboard else "yes"))
    data: Rows = [(v.mount_path, f"volume {v.name}{', read only' if v.read_only else ''}") for v in job.volumes]
    data += [(b.mount_path, f"bucket {b.name}{', read only' if b.read_only else ''}") for b in job.buckets]
    data += [("checkpoints", folder) for folder in job.checkpoint_folders]
    variables: Rows = [("variables", ", ".join(sorted(job.env)))] if job.env else []
    variables += [("secrets", ", ".join(job.secret_names))] if job.secret_names else []
    sections = {
        "Command": command,
        "Files": files,
        "Hardware": hardware,
        "Data": data,
        "Variables": variables,
        "Limits": _limit_rows(job),
    }
    return [{"title": title, "rows": rows} for title, rows in sections.items() if rows]


def _limit_rows(job: Job) -> Rows:
    limits = job.limits
    rows: Rows = [("timeout", f"{format_duration(limits.attempt_timeout)} for each attempt")]
    rows.append(("retries", f"{limits.retries}{', from the newest checkpoint' if job.resume is not None else ''}"))
    for label, value in (("all attempts", limits.total_timeout), ("stall", limits.stall)):
        if value is not None and math.isfinite(value):
            rows.append((label, format_duration(value)))
    if limits.start_deadline is not None:
        rows.append(("start", f"within {format_duration(limits.start_deadline)}"))
    rows.append(("grace", format_duration(limits.grace)))
    if limits.budget is not None:
        rows.append(("budget", format_money(limits.budget)))
    return rows
