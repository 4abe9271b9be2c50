"""What a run's command starts, and what is found about it before the run."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import asdict, field, frozen

from skyrl_modal.findings import Finding
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache
from skyrl_modal.machine import visible_gpu_count
from skyrl_modal.mount import Selection
from skyrl_modal.prepare.findings import texts_of_command
from skyrl_modal.prepare.home_paths import HOMES
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.tracker_variables import tracker_variables
from skyrl_modal.skyrl.config_schema import ConfigSchema
from skyrl_modal.skyrl.resolution.records import Resolution, ResolutionMethod
from skyrl_modal.skyrl.resolution.resolver import ResolvedRun, resolve
from skyrl_modal.skyrl.resolution.script_tree import MountedFiles
from skyrl_modal.skyrl.rules.catalog import checkpoint_folders, export_folders, find_in_starts
from skyrl_modal.skyrl.rules.facts import RunFacts
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.run_spec import RunSpec


def _nothing_known(path: str) -> None:
    return None


@frozen(kw_only=True)
class CheckedState:
    """What the backend and earlier runs show. The fields are those of ``RunFacts``; by default, nothing is known."""

    path_exists: Callable[[str], bool | None] = _nothing_known
    used_checkpoint_folders: Mapping[str, str] = field(factory=dict)
    seconds_per_step: float | None = None


@frozen(kw_only=True)
class WrittenFolders:
    """The folders on volumes that a command writes to, as far as is known.

    Attributes:
        checkpoints: Those of checkpoints.
        exports: Those of evaluations.
    """

    checkpoints: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()


#: The value of secrets in the sandbox. Scripts may check that a key is defined.
_PLACEHOLDER = "secret"
#: The id of the run in the sandbox, so that a recording can be used for further runs. It has the form of an id.
RUN_ID_PLACEHOLDER = "20000101-000000-000000"
_MAX_FILE_BYTES = 1 << 20
#: Variables of this process that a run replaces, or that the sandbox has itself.
_NOT_INHERITED = re.compile(r"PATH|HOME|PWD|OLDPWD|SHELL|TMPDIR|_|LD_.*|BASH.*")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_VARIABLE_USE = re.compile(r"\$\{?([A-Za-z_]\w*)")


def resolve_command(
    job: Job, spec: RunSpec, selections: Sequence[Selection], *, cache: ResultCache = NO_CACHE
) -> Resolution:
    """Return the programs that a run's command starts.

    Args:
        job: The run.
        spec: What the user declared.
        selections: The files of the job's mounts, in their order.
        cache: The user's cache.
    """
    mounts = mounted_files(job, selections)
    requests = spec.gpu_requests
    run = ResolvedRun(
        workdir=job.workdir,
        env=environment_of_command(job, spec, _inherited_variables(job, selections)),
        mounts=mounts,
        repo_root=job.repo_root,
        folders=job.storage_paths,
        gpus=gpus_of_node(job, spec) or 0,
        gpu_name=f"NVIDIA {requests[0].name}" if requests else "GPU",
        cache=cache,
    )
    return resolve(job.command, run)


def find_problems_of_starts(
    resolution: Resolution, job: Job, spec: RunSpec, selections: Sequence[Selection], state: CheckedState | None = None
) -> tuple[list[Finding], WrittenFolders]:
    """Return the findings about the entrypoints of SkyRL that a command starts, and the folders that they write to.

    Args:
        resolution: What the command starts.
        job: The run.
        spec: What the user declared.
        selections: The files of the job's mounts, in their order.
        state: What the backend and earlier runs show; None if they were not asked.
    """
    if not resolution.entrypoints:
        return [], WrittenFolders()
    schema = schema_of_checkout(job, selections)
    facts = facts_of_run(job, spec, selections, state or CheckedState())
    folders = WrittenFolders(
        checkpoints=tuple(with_run_id(each, job) for each in checkpoint_folders(resolution, facts, schema)),
        exports=tuple(with_run_id(each, job) for each in export_folders(resolution, facts, schema)),
    )
    return list(find_in_starts(resolution, facts, schema)), folders


def with_run_id(path: str, job: Job) -> str:
    """Return a path of a resolved command as it is in the run: ``$SKYRL_RUN_ID`` may be a part of it."""
    return path.replace(RUN_ID_PLACEHOLDER, job.run_id)


def schema_of_checkout(job: Job, selections: Sequence[Selection]) -> ConfigSchema:
    """Return the configuration of the mounted checkout; one without keys if none is mounted."""
    mounts = zip(job.mounts, selections, strict=True)
    checkout = next((selection for mount, selection in mounts if mount.is_checkout), None)
    return ConfigSchema() if checkout is None else ConfigSchema.read(checkout.root)


def without_absent_calls(findings: Iterable[Finding], resolution: Resolution) -> list[Finding]:
    """Return findings without those about calls of Ray that the text contains, and the executed command did not make.

    A text may contain them in a comment, a message or a branch that is not taken.

    Args:
        findings: Findings, some of which were found in the text.
        resolution: What the command starts.
    """
    recording = resolution.recording
    if recording.method is not ResolutionMethod.EXECUTED or recording.exit_code != 0:
        return list(findings)
    made = {f"{call.argv[0]}-{call.argv[1]}-call" for call in recording.calls if len(call.argv) > 1}
    return [item for item in findings if item.code not in ("ray-start-call", "ray-stop-call") or item.code in made]


def mounted_files(job: Job, selections: Sequence[Selection]) -> list[MountedFiles]:
    """Return the files of a job's mounts."""
    return [
        MountedFiles(selection.root, mount.remote_path, selection.files)
        for mount, selection in zip(job.mounts, selections, strict=True)
    ]


def facts_of_run(job: Job, spec: RunSpec, selections: Sequence[Selection], state: CheckedState) -> RunFacts:
    """Return what the rules know about a run."""
    is_local = not job.image
    mounts = mounted_files(job, selections)
    env = environment_of_command(job, spec, dict(os.environ))
    return RunFacts(
        home=env["HOME"],
        volumes=job.storage_paths,
        writable_volumes=[volume.mount_path for volume in job.volumes if not volume.read_only],
        writable_buckets=[bucket.mount_path for bucket in job.buckets if not bucket.read_only],
        mounts=[mount.remote_path for mount in job.mounts],
        read_mounted=lambda path: _read_mounted(path, mounts),
        keeps_disk=is_local,
        gpus=gpus_of_node(job, spec, needs_count=True),
        nodes=job.nodes,
        may_restart=not is_local or job.limits.retries > 0,
        resumes=spec.resume is not None,
        timeout=job.limits.attempt_timeout,
        image=job.image,
        has_uv=_has_uv(job) if is_local else None,
        env=env,
        has_unknown_variables=any(not secret.keys for secret in spec.named_secrets),
        **asdict(state, recurse=False),
    )


def _has_uv(job: Job) -> bool:
    """Return whether a command on this machine finds uv: the PATH of a run begins with the programs of this Python."""
    from skyrl_modal.backends.local.environment import path_of_run  # imported here: few commands start trainers

    return shutil.which("uv", path=path_of_run(job)) is not None


def gpus_of_node(job: Job, spec: RunSpec, *, needs_count: bool = False) -> int | None:
    """Return the number of GPUs of a node; None if it is not known.

    On this machine it is the number that the machine has. If it has none, or the requests in order of preference have
    different numbers, the first requested one is used to resolve a command, but not to find problems (``needs_count``).
    """
    counts = [request.count for request in spec.gpu_requests]
    known = job.gpus_per_node if job.image else visible_gpu_count(os.environ) or None
    return known if known is not None or needs_count else counts[0] if counts else 0


def _inherited_variables(job: Job, selections: Sequence[Selection]) -> dict[str, str]:
    """Return the variables of this process that a local command and its scripts mention, without likely secrets."""
    if job.image:
        return {}
    used = {name for _, text in texts_of_command(job, selections) for name in _VARIABLE_USE.findall(text)}
    return {
        name: _PLACEHOLDER if _SECRET_NAME.search(name) else os.environ[name]
        for name in sorted(used & os.environ.keys())
        if not _NOT_INHERITED.fullmatch(name)
    }


def environment_of_command(job: Job, spec: RunSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a command has, as far as they are known, with placeholders for secrets.

    Args:
        job: The run.
        spec: What the user declared.
        inherited: The variables of this process that a local command has.
    """
    env = {"HOME": HOMES[0], "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    if not job.image:
        env["HOME"] = os.path.expanduser("~")
        env |= inherited
    env |= spec.image.env if job.image else {}
    env |= job.env
    env |= dict.fromkeys(job.secret_names, _PLACEHOLDER)
    env |= {"SKYRL_RUN_ID": RUN_ID_PLACEHOLDER, "NUM_NODES": str(job.nodes), "NODE_RANK": "0", "SKYRL_ATTEMPT": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NUM_GPUS": str(gpus_of_node(job, spec) or 0)}
    for name, value in (("SKYRL_REPO_ROOT", job.repo_root), ("SKYRL_DATA", job.data_root)):
        env |= {} if value is None else {name: value}
    if job.ray is not None:
        env["RAY_ADDRESS"] = "127.0.0.1:6379"
    if job.run_folder_volume is None:
        return env
    # The same for all runs, since the result of an execution is stored for later runs.
    return {**tracker_variables(posixpath.join(posixpath.dirname(job.run_folder), "run")), **env}


def _read_mounted(path: str, mounts: Sequence[MountedFiles]) -> str | None:
    for mount in mounts:
        inside = posixpath.relpath(posixpath.normpath(path), mount.remote_path)
        if is_below(posixpath.normpath(path), mount.remote_path) and inside in frozenset(mount.files):
            try:
                return read_regular_file(mount.root / inside, max_bytes=_MAX_FILE_BYTES).decode("utf-8", "replace")
            except OSError:
                return None
    return None
