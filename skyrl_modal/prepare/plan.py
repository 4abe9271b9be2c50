"""What a launcher would do with a command: a job, the files that go, and what to know before it costs anything."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from skyrl_modal.checkout import Checkout, find_checkout, read_checkout
from skyrl_modal.errors import SpecError
from skyrl_modal.mount import Selection, select
from skyrl_modal.protocol.job import Job, JobMount, JobVolume, new_run_id
from skyrl_modal.spec.gpu import parse_gpu
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.run_spec import Declaration
from skyrl_modal.spec.secret import SecretSpec

#: A call of Ray's own command line.
_OWN_RAY = re.compile(r"(?:^|[\s;&|(])ray\s+(start|stop)(?![\w-])", re.MULTILINE)


@frozen(kw_only=True)
class Plan:
    """What would run, where, with which files. Making one starts nothing.

    Attributes:
        job: The run as plain data.
        selections: The files that go, one for each of the job's mounts.
        warnings: What should be known before it costs anything.
        backend: The name of the backend.
    """

    job: Job
    selections: tuple[Selection, ...]
    warnings: tuple[str, ...]
    backend: str

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a word and what it is."""
        job = self.job
        found = [("command", job.command), ("backend", self.backend), ("workdir", job.workdir)]
        if self.backend != "local":
            found += [("image", str(job.image["base"])), ("gpu", " or ".join(job.gpu) or "none")]
        if job.nodes > 1:
            found.append(("nodes", str(job.nodes)))
        found += self.mount_lines()
        found += [("volume", f"{v.mount_path} is {v.name}{' (read only)' if v.read_only else ''}") for v in job.volumes]
        found.append(("timeout", f"{job.timeout:g} s, {job.retries} retries"))
        return found

    def mount_lines(self) -> list[tuple[str, str]]:
        """What goes where."""
        found = []
        for mount in self.job.mounts:
            text = f"{mount.remote_path} from {mount.local_path}: {mount.files:,} files, {mount.bytes / 1e6:,.1f} MB"
            if self.job.repo_root == mount.remote_path and self.job.checkout.get("commit"):
                checkout = self.job.checkout
                text += f"; {Checkout(Path(), checkout['commit'], checkout['changed']).description}"
            found.append(("mount", text))
        return found

    def __str__(self) -> str:
        rows = [f"{word:>8}  {text}" for word, text in self.lines()]
        return "\n".join([*rows, *(f" warning  {text}" for text in self.warnings)])


def make_plan(launcher: Declaration, command: str, backend: str) -> Plan:
    """Compose a launcher's specs and its checkout into a job.

    Args:
        launcher: What was declared.
        command: A shell string.
        backend: The backend's name.

    Raises:
        SpecError: The workdir is not among what goes, or a mount's folder is not there.
        CheckoutNotFound: There is no checkout.
    """
    checkout_mount = next((mount for mount in launcher.mounts if mount.local_path is None), None)
    checkout = read_checkout(launcher.checkout or find_checkout()) if checkout_mount else None
    selections = [_select(mount, checkout) for mount in launcher.mounts]
    base, warning = launcher.image.resolved_base(checkout.ray_version if checkout else None)
    notes = [warning] if warning and backend != "local" else []
    run_id = new_run_id()
    repo_root = checkout_mount.remote_path if checkout_mount else None
    writable = next((volume for volume in launcher.volumes if not volume.read_only), None)
    requests = parse_gpu(launcher.gpu)
    counts = {request.count for request in requests} or {0}
    own = [item for item in launcher.secrets if isinstance(item, str)]
    named = {item.name: tuple(item.keys) for item in launcher.secrets if isinstance(item, SecretSpec)}
    job = Job(
        id=run_id,
        command=command,
        workdir=posixpath.normpath(posixpath.join(repo_root or "/", launcher.workdir)),
        repo_root=repo_root,
        data=launcher.volumes[0].mount_path if launcher.volumes else None,
        run_dir=f"{writable.mount_path if writable else '/root'}/.skyrl_modal/runs/{run_id}",
        mounts=tuple(
            JobMount(
                remote_path=mount.remote_path,
                local_path=str(selection.root),
                files=len(selection.files),
                bytes=selection.bytes,
                is_checkout=mount.local_path is None,
                exclude=mount.exclude,
                include=mount.include,
                skip_caches=mount.skip_caches,
            )
            for mount, selection in zip(launcher.mounts, selections, strict=True)
        ),
        volumes=tuple(JobVolume(**asdict(volume)) for volume in launcher.volumes),
        env=dict(launcher.env),
        secrets=(*own, *(key for keys in named.values() for key in keys)),
        named_secrets=named,
        image={**asdict(launcher.image), "base": base},
        gpu=tuple(str(request) for request in requests),
        # Of requests that differ in their count, the container sees which it got.
        gpus=None if backend == "local" or len(counts) > 1 else counts.pop(),
        nodes=launcher.nodes,
        rdma=launcher.rdma,
        ray=None if launcher.ray is None else asdict(launcher.ray),
        timeout=launcher.timeout,
        grace=launcher.grace,
        retries=launcher.retries,
        should_retry=launcher.should_retry,
        app_name=launcher.app_name,
        cpu=launcher.cpu,
        memory=launcher.memory,
        region=launcher.region,
        cloud=launcher.cloud,
        checkout=_checkout_facts(checkout),
    )
    _check_workdir(job, launcher.workdir, selections)
    notes += _ray_notes(job, selections)
    notes += [warning for selection in selections for warning in selection.warnings]
    return Plan(job=job, selections=tuple(selections), warnings=tuple(notes), backend=backend)


def _checkout_facts(checkout: Checkout | None) -> dict[str, Any]:
    if checkout is None:
        return {}
    facts = {"commit": checkout.commit, "changed": checkout.changed, "ray": checkout.ray_version}
    return {"root": str(checkout.root), **facts}


def _ray_notes(job: Job, selections: Sequence[Selection]) -> list[str]:
    """What will not go as its author thinks: commands that start or stop a Ray, and nodes that have nothing to do."""
    notes = []
    if job.nodes > 1 and job.ray is None:
        notes.append(f"nodes={job.nodes} without Ray: only rank 0 runs the command, and nothing starts on the others")
    for where, text in [("the command", job.command), *_scripts(job, selections)]:
        calls = {match[1] for match in _OWN_RAY.finditer(text)}
        if "start" in calls and job.ray is not None:
            notes.append(
                f"{where} calls `ray start`, but a Ray is up on every node, at $RAY_ADDRESS: take the call out, "
                "or give ray=None"
            )
        if "stop" in calls:
            notes.append(f"{where} calls `ray stop`, which ends every Ray that it sees, the run's own too: take it out")
    return notes


def _scripts(job: Job, selections: Sequence[Selection]) -> list[tuple[str, str]]:
    """The shell scripts that go and that the command names, with their texts."""
    try:
        words = shlex.split(job.command, comments=True)
    except ValueError:  # bash will say what is wrong with it
        return []
    found = []
    for mount, selection in zip(job.mounts, selections, strict=True):
        for word in words:
            inside = posixpath.relpath(posixpath.join(job.workdir, word), mount.remote_path)
            if word.endswith((".sh", ".bash")) and inside in selection.files:
                try:
                    text = Path(selection.root, inside).read_text(encoding="utf-8", errors="replace")
                except OSError:  # it vanished meanwhile, or may not be read: the selection's own warnings tell
                    continue
                found.append((inside, re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)))
    return found


def _select(mount: MountSpec, checkout: Checkout | None) -> Selection:
    root = mount.local_path or (checkout.root if checkout else None)
    if root is None:  # cannot be: a mount without a folder is what makes the checkout be read
        raise SpecError("local_path", None, "give a folder, or None for the checkout")
    return select(root, include=mount.include, exclude=mount.exclude, skip_caches=mount.skip_caches)


def _check_workdir(job: Job, given: str, selections: Sequence[Selection]) -> None:
    """See that the workdir is among what goes, while nothing has started."""
    for volume in job.volumes:
        if job.workdir == volume.mount_path or job.workdir.startswith(f"{volume.mount_path}/"):
            return  # only the volume knows what is on it
    for mount, selection in zip(job.mounts, selections, strict=True):
        if job.workdir == mount.remote_path:
            return
        if job.workdir.startswith(f"{mount.remote_path}/"):
            inside = job.workdir.removeprefix(f"{mount.remote_path}/")
            if any(name.startswith(f"{inside}/") for name in selection.files):
                return
            raise SpecError("workdir", given, f"no file that goes from {selection.root} is in {inside}/")
    if given != ".":
        raise SpecError("workdir", given, "it is in no mount and on no volume")
