"""The local backend: starts runs on this machine and finds them again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import CheckResult, Handle, PreparedRun, VolumeEntry
from skyrl_modal.backends.local.checks import check_ray, run_checks
from skyrl_modal.backends.local.environment import check_environment_size
from skyrl_modal.backends.local.mount_points import check_mount_points
from skyrl_modal.backends.local.ray_folder import find_ray_place
from skyrl_modal.backends.local.run_lock import remove_state
from skyrl_modal.backends.local.run_start import RunStart
from skyrl_modal.backends.local.sandbox import (
    Sandbox,
    find_sandbox,
    forget_search,
    recorded_sandbox,
    search_in_background,
)
from skyrl_modal.backends.local.scratch import (
    abandoned_folders,
    scratch_parent,
    scratch_root,
)
from skyrl_modal.backends.local.volume_folder import bucket_folder, volume_folder
from skyrl_modal.errors import BackendUnavailable, SkyRLModalError, SpecError, StorageError
from skyrl_modal.protocol.job import Job
from skyrl_modal.user_folders import create_user_folder

if TYPE_CHECKING:
    from skyrl_modal.backends.local.execution import LocalExecution
    from skyrl_modal.backends.transfer_options import TransferOptions
    from skyrl_modal.formats.checkpoint_listing import Listing
    from skyrl_modal.protocol.state import VolumeEntryKind
    from skyrl_modal.spec.bucket import AnyVolume
    from skyrl_modal.spec.run_spec import RunSpec


class LocalBackend:
    """Runs on this machine. A run uses the GPUs, CPUs and memory that the machine has.

    Example:
        >>> LocalBackend().name
        'local'
    """

    name = "local"

    @contextlib.contextmanager
    def prepare_check(self) -> Iterator[None]:
        """Search for a sandbox while the ``with`` block runs. ``check`` reports problems."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StorageError):
                stack.enter_context(search_in_background(create_user_folder(scratch_root())))
            yield

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Check whether this machine can execute a run.

        Returns:
            Warnings for the user.

        Raises:
            BackendUnavailable: This is not a POSIX system, a folder cannot be created, or no folder is suitable for
                Ray's sockets.
            SpecError: The run uses a secret that Modal stores, a volume that does not exist and may not be created, or
                a Ray that is too old.
        """
        if os.name != "posix":
            raise BackendUnavailable(self.name, 'it requires Linux or macOS (on Windows: WSL), or use backend="modal"')
        stored = [secret.name for secret in spec.named_secrets if not secret.optional]
        if stored:
            raise SpecError(
                "secrets",
                stored,
                "the local backend cannot read secrets that Modal stores. Pass names of variables as secrets instead, "
                "such as WANDB_API_KEY, and set them in your environment or .env",
            )
        for volume in job.volumes:
            if not volume.create_if_missing and not volume_folder(volume.name).is_dir():
                folder = volume_folder(volume.name)
                remedy = f"{folder} does not exist; create it, or remove the value of create_if_missing"
                raise SpecError("volumes", volume.name, remedy)
        check_environment_size(job)
        check_ray(job)
        try:
            create_user_folder(scratch_root())
            search = find_sandbox(scratch_root())
        except StorageError as error:
            raise BackendUnavailable(self.name, str(error)) from error
        if job.ray is not None:
            find_ray_place(scratch_parent(search.sandbox), search.sandbox)
        warnings = [
            f"the optional secret {secret.name} is left out: it is stored on Modal" for secret in spec.named_secrets
        ]
        if search.sandbox is None:
            warnings.append(
                "This machine does not allow namespaces, so /root/SkyRL and /root/data do not exist. Use "
                f"$SKYRL_REPO_ROOT and $SKYRL_DATA instead ({'; '.join(search.reasons)})."
            )
            warnings += [f"{item.mount_path} does not exist: use {bucket_folder(item)}" for item in job.buckets]
        else:
            check_mount_points(job)
        return warnings

    def describe(self, job: Job, spec: RunSpec) -> Sequence[tuple[str, str]]:
        """Return label and value pairs that describe where the run executes."""
        search = find_sandbox(scratch_root())
        sandbox = search.sandbox
        where = (
            f"this machine, in separate namespaces, with {search.layers}"
            if sandbox
            else "this machine, without isolation"
        )
        volumes = [("volume", f"{volume.mount_path} is {volume_folder(volume.name)}") for volume in job.volumes]
        volumes += [("bucket", f"{bucket.mount_path} is {bucket_folder(bucket)}") for bucket in job.buckets]
        if job.ray is not None:
            place = find_ray_place(scratch_parent(sandbox), sandbox)
            if place.parent is not None:
                volumes.append(("ray's files", place.description))
        if job.nodes == 1:
            return [("where", where), *volumes]
        from skyrl_modal.backends.local.network import shared_network_reason  # imported here: most runs have one node

        reason = shared_network_reason(sandbox)
        network = f"on this machine's network ({reason})" if reason else "each with an address of its own"
        return [("where", where), ("nodes", f"{job.nodes} on this machine, {network}"), *volumes]

    def start(self, run: PreparedRun, *, owned: bool) -> LocalExecution:
        """Start the ranks of a run.

        Args:
            run: The run. Its snapshots are released; the ranks keep duplicates of their locks.
            owned: Whether the run ends when this process exits, and is streamed to it.

        Raises:
            BackendUnavailable: A supervisor did not start. The text has the end of its log.
        """
        sandbox = find_sandbox(scratch_root()).sandbox
        with contextlib.ExitStack() as stack:
            for snapshot in run.snapshots:
                stack.callback(snapshot.release)
            early = _take_early_start(run, sandbox, owned=owned)
            if early is not None:
                stack.callback(early.close)
                with contextlib.suppress(BackendUnavailable):  # it was killed, for example: the run is started again
                    return early.finish(run)
                early.close()
            start = RunStart(run, sandbox, owned=owned)
            stack.callback(start.close)
            try:
                return start.finish(run)
            except BackendUnavailable:
                forget_search(scratch_root())  # the sandbox may not work any more
                raise

    @contextlib.contextmanager
    def prepare_start(self, expected: PreparedRun) -> Iterator[None]:
        """Start the processes of a run that will probably be started in the ``with`` block, up to its command.

        ``start`` uses them if the run is as expected. Otherwise they are killed.

        Args:
            expected: What is known about the run before its plan. Its snapshots are released.
        """
        with contextlib.ExitStack() as stack:
            for snapshot in expected.snapshots:
                stack.callback(snapshot.release)
            sandbox = recorded_sandbox(scratch_root())
            job = expected.job
            # A start creates the folders of volumes and buckets, which the check of the run may refuse.
            folders = [*(volume_folder(item.name) for item in job.volumes), *map(bucket_folder, job.buckets)]
            has_volumes = all(folder.is_dir() for folder in folders)
            if sandbox is None or job.ray is not None or job.nodes > 1 or not has_volumes:
                yield
                return
            # The plan, or the start without it, reports what is wrong.
            with contextlib.suppress(OSError, SkyRLModalError):
                _early_starts[job.run_id] = RunStart(expected, sandbox, owned=True, is_early=True)
            try:
                yield
            finally:
                start = _early_starts.pop(job.run_id, None)
                if start is not None:
                    start.close()

    def attach(self, job: Job, handle: Handle) -> LocalExecution:
        """Return a run that was started before, possibly by another process.

        Raises:
            RecordError: The handle was not created by this backend.
        """
        from skyrl_modal.backends.local.execution import LocalExecution  # the start of a run loads it later

        return LocalExecution(job, handle)

    def diagnose(self) -> Iterator[CheckResult]:
        """Check what this backend needs on this machine, for ``skyrl-modal doctor``."""
        return run_checks()

    # What reads and writes volumes is imported in these methods, since a run does not need it.

    def ls(self, volume: AnyVolume, path: str) -> Sequence[VolumeEntry]:
        """Return the entries of a folder of a volume. For a file, return one entry."""
        from skyrl_modal.backends.local.volumes import list_folder

        return list_folder(volume, path)

    def checkpoint_listing(self, volume: AnyVolume, path: str) -> Listing:
        """Return a checkpoint folder on a volume.

        Raises:
            SpecError: The path leads out of the volume.
        """
        from skyrl_modal.backends.local.volumes import path_on_volume
        from skyrl_modal.formats.checkpoint_listing import FolderListing

        return FolderListing(str(path_on_volume(volume, path)))

    def kind(self, volume: AnyVolume, path: str, *, follow_links: bool = True) -> VolumeEntryKind | None:
        """Return what a path of a volume is; None if there is no such volume or path."""
        from skyrl_modal.backends.local.volumes import find_kind

        return find_kind(volume, path, follow_links=follow_links)

    def walk(self, volume: AnyVolume, path: str) -> Iterator[VolumeEntry]:
        """Yield all entries below a folder of a volume. Symbolic links are not followed."""
        from skyrl_modal.backends.local.volumes import walk_folder

        return walk_folder(volume, path)

    def read(self, volume: AnyVolume, path: str) -> Iterator[bytes]:
        """Yield the content of a file of a volume in pieces."""
        from skyrl_modal.backends.local.volumes import read_file

        return read_file(volume, path)

    def remove(self, volume: AnyVolume, path: str, *, recursive: bool) -> None:
        """Remove a file of a volume, or a folder with its content."""
        from skyrl_modal.backends.local.volumes import remove

        remove(volume, path, recursive=recursive)

    def pull(self, volume: AnyVolume, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from a volume to ``local``. Return warnings about entries that were not copied."""
        from skyrl_modal.backends.local.volumes import copy_from_volume

        return copy_from_volume(volume, path, local, options)

    def push(self, volume: AnyVolume, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from this machine to a volume. Return warnings about entries that were not copied."""
        from skyrl_modal.backends.local.volumes import copy_to_volume

        return copy_to_volume(volume, local, path, options)

    def abandoned_folders(self) -> Iterator[Path]:
        """Yield the scratch folders of runs that are not active any more, and were killed before they removed them."""
        return abandoned_folders()

    def forget(self, run_id: str) -> None:
        """Remove what this machine keeps about a run that has ended, except its logs and results."""
        remove_state(run_id)


#: The runs whose processes were started before they were planned, by their ids.
_early_starts: dict[str, RunStart] = {}


def _take_early_start(run: PreparedRun, sandbox: Sandbox | None, *, owned: bool) -> RunStart | None:
    """Return what ``prepare_start`` has started for a run; None if there is nothing that is as the run requires."""
    start = _early_starts.pop(run.job.run_id, None)
    if start is None or start.is_suitable(run, sandbox, owned=owned):
        return start
    start.close()
    return None
