"""Plans: what a run would do, before anything is started or copied."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from skyrl_modal.checkout import Checkout, CheckoutInspection
from skyrl_modal.checkout_search import find_checkout
from skyrl_modal.dataclass import replace
from skyrl_modal.declaration import field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.gitfiles.report import format_size
from skyrl_modal.mount import Selection, select
from skyrl_modal.prepare.command import shorten_command
from skyrl_modal.prepare.findings import checkout_finding, find_problems, find_short_grace, texts_of_command
from skyrl_modal.prepare.hidden_files import check_hidden_files
from skyrl_modal.prepare.job_builder import build_job
from skyrl_modal.prepare.ray_version import find_image_mismatch, find_version_mismatch
from skyrl_modal.prepare.secret_values import find_repeated_values, read_secret_values, secret_folders
from skyrl_modal.prepare.user_cache import result_cache
from skyrl_modal.protocol.codec import encode
from skyrl_modal.protocol.job import Bucket, Job, Volume
from skyrl_modal.skyrl.resolution.records import Resolution
from skyrl_modal.skyrl.scripts import may_start_python
from skyrl_modal.spec.duration import format_duration
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.stored import encode_spec
from skyrl_modal.views.findings import by_severity, finding_rows, findings_to_html
from skyrl_modal.views.text import format_rows

if TYPE_CHECKING:
    from skyrl_modal.backends import FindRates, NodeRates
    from skyrl_modal.prepare.command_starts import CheckedState
    from skyrl_modal.prepare.cost import PlanCost
    from skyrl_modal.prepare.fix import Fix

#: The backend that runs on this machine: without an image, and with the GPUs that the machine has.
_LOCAL = "local"
_MODAL = "modal"


@frozen(kw_only=True, slots=False)  # with slots, attrs reads and compiles the source of the cached property
class Plan:
    """What would run, where, and with which files. ``str(plan)`` is a text for people.

    Attributes:
        job: The run.
        spec: What the user declared.
        checkout: The mounted checkout; None if none is mounted.
        selections: The files of the job's mounts, in their order.
        findings: Problems that were found.
        backend: The name of the backend.
        resolution: The Python programs that the command starts, with their arguments.
        state: What the backend and earlier runs show; None if they were not asked.
        rates: What one node costs; None if the run costs nothing.
    """

    job: Job
    spec: RunSpec
    checkout: Checkout | None
    selections: tuple[Selection, ...]
    findings: tuple[Finding, ...]
    backend: str
    resolution: Resolution = field(factory=Resolution)
    state: CheckedState | None = field(default=None, eq=False, repr=False)
    rates: NodeRates | None = None

    @cached_property
    def fix(self) -> Fix:
        """The overrides that remove findings, as far as they reach the trainer. It resolves the command again."""
        from skyrl_modal.prepare.fix import find_fix  # imported here, since most commands need no fix

        return find_fix(self, result_cache(), self.state)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The ``key=value`` arguments that remove findings, and that are proved to reach the trainer."""
        return self.fix.overrides

    @property
    def fixed_command(self) -> str:
        """The command with ``overrides``."""
        return self.fix.command

    def command_with(self, overrides: Mapping[str, str]) -> str:
        """Return the command with other values of some overrides, which are proved to reach the trainer.

        Args:
            overrides: The values by their keys, such as ``{"trainer.policy.optimizer_config.lr": "1e-6"}``.

        Raises:
            SpecError: It is not proved that a value would reach the trainer.
        """
        from skyrl_modal.prepare.override import command_with  # imported here, since most plans do not need it

        return command_with(self, overrides, result_cache())

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings other than notes, as text, the errors first."""
        return tuple(map(str, self._shown_findings))

    @property
    def _shown_findings(self) -> list[Finding]:
        return by_severity(finding for finding in self.findings if finding.severity is not Severity.NOTE)

    @cached_property
    def cost(self) -> PlanCost:
        """What the run costs, as far as it is known before it starts."""
        from skyrl_modal.prepare.cost import plan_cost  # imported here, since a local run costs nothing

        return plan_cost(self.job, self.spec, self.rates)

    def to_json(self) -> str:
        """Return command, findings, overrides and starts as JSON. It resolves the command again for the overrides.

        Example:
            >>> from skyrl_modal import Launcher
            >>> Launcher(backend="local", mounts=[], ray=None).plan("true").to_json().splitlines()[1].strip()
            '"command": "true",'
        """
        values = {
            "command": self.job.command,
            "fixed_command": self.fixed_command,
            "overrides": list(self.overrides),
            "findings": [encode(finding) for finding in (*self.findings, *self.fix.findings)],
            "starts": [encode(start) for start in self.resolution.starts],
            "unresolved": self.resolution.unresolved,
            "cost": encode(self.cost),
        }
        return json.dumps(values, indent=2)

    @property
    def stored_spec(self) -> dict[str, Any]:
        """What the user declared as plain data, with the checkout that was found."""
        return encode_spec(self.spec, checkout=self.checkout.root if self.checkout else None)

    def sections(self) -> list[list[tuple[str, str]]]:
        """Return the plan as label and value pairs, in groups: command, files, where it runs, data, limits, cost."""
        job = self.job
        command = [("command", shorten_command(job.command)), *self._start_rows(), ("workdir", job.workdir)]
        command += [("name", job.name)] if job.name is not None else []
        command += [("tags", ", ".join(job.tags))] if job.tags else []
        place = [("backend", self.backend), *([] if self.backend == _LOCAL else self._image_rows())]
        place += [("nodes", str(job.nodes))] if job.nodes > 1 else []
        place.append(("ray", _describe_ray(job)))
        data = [_storage_row("volume", item) for item in job.volumes]
        data += [_storage_row("bucket", item) for item in job.buckets]
        data += [("secrets", ", ".join(job.secret_names))] if job.secret_names else []
        return [command, self.mount_rows(), place, data, self._limit_rows(), self.cost_rows()]

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as label and value pairs."""
        return [row for section in self.sections() for row in section]

    def _image_rows(self) -> list[tuple[str, str]]:
        spec = self.spec
        layers = ", ".join([*spec.image.apt, *spec.image.pip])
        with_layers = f", with {layers}" if layers else ""
        rows = [("image", f"{self.job.image}{with_layers}")]
        rows.append(("gpu", " or ".join(map(str, spec.gpu_requests)) or "none"))
        values = [("cpu", spec.cpu), ("memory", spec.memory and f"{spec.memory:,} MiB"), ("region", spec.region)]
        values += [("cloud", spec.cloud), ("rdma", "yes" if spec.rdma else None)]
        return rows + [(label, str(value)) for label, value in values if value]

    def _limit_rows(self) -> list[tuple[str, str]]:
        limits, spec = self.job.limits, self.spec
        retries = f"{limits.retries} retries" + ("" if spec.resume is None else f", resume={spec.resume}")
        rows = [("timeout", f"{format_duration(limits.attempt_timeout)} for each attempt, {retries}")]
        if limits.stall is not None:
            rows.append(("stall", f"after {format_duration(limits.stall)} without output and without a new step"))
        if limits.start_deadline is not None:
            rows.append(("start", f"within {format_duration(limits.start_deadline)} of the submission"))
        return rows

    def cost_rows(self) -> list[tuple[str, str]]:
        """Return the cost as label and value pairs; none for a run that costs nothing."""
        if self.rates is None:
            return []
        from skyrl_modal.views.money import format_money  # imported here, since a local run costs nothing

        budget = self.job.limits.budget
        return [("cost", str(self.cost)), *([] if budget is None else [("budget", format_money(budget))])]

    def _start_rows(self) -> list[tuple[str, str]]:
        starts = [("starts", f"{start.program} ({start.kind})") for start in self.resolution.entrypoints]
        unresolved = self.resolution.unresolved
        return [*starts, ("starts", f"not resolved: {unresolved}")] if unresolved else starts

    def mount_rows(self) -> list[tuple[str, str]]:
        """Return a label and value pair for each mount."""
        rows = []
        for mount, selection in zip(self.job.mounts, self.selections, strict=True):
            size = format_size(mount.bytes)
            text = f"{mount.remote_path} from {selection.root}: {mount.files:,} files, {size}"
            if mount.is_checkout and self.checkout is not None and self.checkout.commit is not None:
                text += f"; {self.checkout.description}"
            rows.append(("mount", text))
        return rows

    def __str__(self) -> str:
        groups = [*self.sections(), finding_rows(self._shown_findings)]
        return "\n\n".join(format_rows(group) for group in groups if group)

    def _repr_html_(self) -> str:
        """Return the plan for a notebook."""
        from skyrl_modal.views.notebook import rows_to_html  # only a notebook needs it

        return f"{rows_to_html(self.rows())}{findings_to_html(self._shown_findings)}"


def _describe_ray(job: Job) -> str:
    if job.ray is None:
        return "none"
    dashboard = ", with its dashboard" if job.ray.dashboard else ""
    return f"{job.nodes} {'node' if job.nodes == 1 else 'nodes'}{dashboard}"


class PlanBasis:
    """What the plans of several commands have in common: the selected files and the checkout.

    What needs another process, such as git, is started first, and its result is read at the end; ``plan`` can do the
    same for what depends on the command. What depends only on files is stored in ``result_cache``.

    Args:
        spec: What the user declared.
        backend: The name of the backend.
        find_rates: Returns what one node of the run costs; None if the backend has no rates.

    Raises:
        SpecError: The folder of a mount, or a file that a step of the image copies, does not exist; or a file of the
            checkout cannot be read.
        CheckoutNotFound: A mount is the checkout, and there is none.

    Attributes:
        selections: The files of the mounts, in their order.
    """

    def __init__(self, spec: RunSpec, backend: str, find_rates: FindRates | None = None) -> None:
        self._spec, self._backend, self._cache = spec, backend, result_cache()
        self._find_rates = find_rates
        has_checkout = any(mount.local_path is None for mount in spec.mounts)
        with ExitStack() as started:
            inspection = None
            if has_checkout:
                inspection = CheckoutInspection(spec.checkout or find_checkout(), self._cache)
                started.enter_context(inspection)
            self.selections = tuple(
                self._select(mount, inspection.root if inspection else None) for mount in spec.mounts
            )
            for selection in self.selections:
                _ = selection.bytes, selection.warnings  # computed here, while git runs
            self._checkout = inspection.result() if inspection else None
        self._image, self._image_warning = "", None
        if backend != _LOCAL:
            version = self._checkout.ray_version if self._checkout else None
            self._image, self._image_warning = spec.image.resolved_base(version)
            if spec.image.steps:
                self._check_image_steps()
        # A plan can be made without the secrets that are not defined.
        self._secret_values = read_secret_values(
            spec.secret_variables, secret_folders(self._checkout), optional=spec.secret_variables
        )

    def _check_image_steps(self) -> None:
        """Check that the files exist which the image's steps copy."""
        from skyrl_modal.spec.copied_files import check_copied_files  # imported here: few images have steps

        mounted = zip(self._spec.mounts, self.selections, strict=True)
        files = next((selection.files for mount, selection in mounted if mount.local_path is None), None)
        known = (
            None if files is None else {str(path) for name in files for path in (name, *PurePosixPath(name).parents)}
        )
        for step in self._spec.image.steps:
            check_copied_files(step, None if known is None else known.__contains__)

    def _select(self, mount: MountSpec, checkout: Path | None) -> Selection:
        return select(
            mounted_folder(mount, checkout),
            include=mount.include,
            exclude=mount.exclude,
            skip_caches=mount.skip_caches,
            search_cache=self._cache.folder,
        )

    def plan(self, command: str, state: CheckedState | None = None, *, run_id: str | None = None) -> Plan:
        """Build the job of a command, validate it and collect findings.

        Args:
            command: A shell string.
            state: What the backend and earlier runs show; None if they were not asked.
            run_id: The id of the run; None for a new one.

        Raises:
            SpecError: The workdir is not mounted, a volume would hide mounted files, or the value of a secret is in
                the command or in another field.
        """
        spec, checkout, selections, is_local = self._spec, self._checkout, self.selections, self._backend == _LOCAL
        job = build_job(
            spec,
            command,
            checkout=checkout,
            selections=selections,
            image=self._image,
            counts_gpus=is_local,
            run_id=run_id,
        )
        _check_workdir(job, spec.workdir, selections)
        check_hidden_files(job, selections)
        findings = list(find_repeated_values(spec, command, self._secret_values))
        if checkout is not None and checkout.warning:
            findings.append(checkout_finding(checkout.warning))
        texts = texts_of_command(job, selections)
        if is_local:
            mismatch = find_version_mismatch(job, checkout, texts, self._cache)
        else:
            mismatch = find_image_mismatch(job, spec.image, checkout, texts, self._cache, warning=self._image_warning)
        findings += [] if mismatch is None else [mismatch]
        if self._backend == _MODAL:
            findings += find_short_grace(job.limits)
        findings += find_problems(job, selections, texts)
        resolution = Resolution()
        if may_start_python(text for _, text in texts):
            # Imported here, since most commands do not need it.
            from skyrl_modal.prepare.command_starts import (
                find_problems_of_starts,
                resolve_command,
                without_absent_calls,
            )

            resolution = resolve_command(job, spec, selections, cache=self._cache)
            found, folders = find_problems_of_starts(resolution, job, spec, selections, state)
            findings = [*without_absent_calls(findings, resolution), *found]
            job = replace(job, checkpoint_folders=folders.checkpoints, export_folders=folders.exports)
        rates = None
        if self._find_rates is not None or spec.rate is not None or spec.budget is not None:
            # Imported here, since a local run costs nothing.
            from skyrl_modal.prepare.cost import find_budget_problems, find_rates, node_rate, plan_cost

            rates = find_rates(spec, self._find_rates)
            job = replace(job, rate=node_rate(rates))
            findings += find_budget_problems(spec.budget, plan_cost(job, spec, rates))
        plan = Plan(
            job=job,
            spec=spec,
            checkout=checkout,
            selections=selections,
            findings=tuple(findings),
            backend=self._backend,
            resolution=resolution,
            state=state,
            rates=rates,
        )
        if spec.resume is None:
            return plan
        from skyrl_modal.prepare.resume import with_resume  # imported here, since most runs do not need it

        return with_resume(plan, self._cache)


def _storage_row(label: str, item: Volume | Bucket) -> tuple[str, str]:
    prefix = f", {item.key_prefix}" if isinstance(item, Bucket) and item.key_prefix else ""
    return label, f"{item.mount_path} is {item.name}{prefix}{' (read only)' if item.read_only else ''}"


def mounted_folder(mount: MountSpec, checkout: Path | None) -> Path:
    """Return the local folder of a mount.

    Args:
        mount: The mount.
        checkout: The checkout's root; None if no mount is the checkout.

    Raises:
        SpecError: The mount is the checkout, and there is none.
    """
    folder = mount.local_path or checkout
    if folder is None:
        raise SpecError("local_path", None, "pass a folder, or None for the checkout")
    return folder


def _check_workdir(job: Job, declared: str, selections: Sequence[Selection]) -> None:
    """Raise SpecError if the workdir is in no mount and on no volume."""
    if any(is_below(job.workdir, path) for path in job.storage_paths):
        return  # the contents of volumes and buckets are not known before the run starts
    for mount, selection in zip(job.mounts, selections, strict=True):
        if job.workdir == mount.remote_path:
            return
        if is_below(job.workdir, mount.remote_path):
            inside = job.workdir.removeprefix(f"{mount.remote_path}/")
            if any(name.startswith(f"{inside}/") for name in selection.files):
                return
            raise SpecError("workdir", declared, f"{inside}/ contains no file that is mounted from {selection.root}")
    if declared != ".":
        raise SpecError("workdir", declared, "it is in no mount and on no volume")
