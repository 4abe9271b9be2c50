"""The Modal backend: an app for each run, whose one function is the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import CheckResult, Handle, NodeRates, PreparedRun, VolumeEntry
from skyrl_modal.backends.modal import checks, preflight, volumes
from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.buckets import only_volume
from skyrl_modal.backends.modal.errors import translated_client_errors
from skyrl_modal.backends.modal.event_loop import event_loop, wait_for_future
from skyrl_modal.backends.modal.execution import ModalExecution
from skyrl_modal.backends.modal.rate_request import RateRequest
from skyrl_modal.backends.modal.rates import node_rates
from skyrl_modal.backends.modal.run_checks import check_run
from skyrl_modal.backends.transfer_options import TransferOptions
from skyrl_modal.errors import PathNotFound
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.bucket import AnyVolume
from skyrl_modal.spec.run_spec import RunSpec

if TYPE_CHECKING:
    from skyrl_modal.formats.checkpoint_listing import Listing

#: How far back the log of a call is searched whose time of creation is not known.
MODAL_CALL_RETENTION = timedelta(days=7)
#: What the ids of Modal's calls begin with (modal 1.6.4; ``modal.FunctionCall`` has no other way to recognize one).
CALL_ID_PREFIX = "fc-"


class ModalBackend:
    """Runs in Modal's containers, with the account of the environment or of ``modal setup``.

    Example:
        >>> ModalBackend().name
        'modal'
    """

    name = "modal"

    def __init__(self) -> None:
        self._rate_request: RateRequest | None = None

    @contextlib.contextmanager
    def prepare_check(self) -> Iterator[None]:
        """Request the workspace's rates, unless they are stored, while the ``with`` block runs."""
        self._rate_request = RateRequest()
        yield

    def node_rates(self, spec: RunSpec) -> NodeRates:
        """Return what one node of a run costs, by the rates of the workspace, else by a table of public rates.

        It waits ``rate_request.REQUEST_TIMEOUT`` seconds at most for the rates.
        """
        if self._rate_request is None:
            self._rate_request = RateRequest()
        return node_rates(spec, self._rate_request.result())

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Check whether a run can be started on Modal. No request is sent.

        Returns:
            Warnings for the user.

        Raises:
            BackendUnavailable: There is no token.
            SpecError: Modal would refuse the run: its timeout, or the GPUs of a cluster. Or its dashboard would not be
                protected.
        """
        warnings = check_run(job, spec)
        checks.check_token()
        return warnings

    def check_objects(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Ask Modal whether it has the secrets and volumes that a run names, except for volumes that a run creates.

        Returns:
            Warnings about optional secrets that it does not have.

        Raises:
            BackendUnavailable: Modal cannot be reached, or refuses the token.
            SpecError: It has no such secret or volume.
        """
        preflight.connect()
        with translated_client_errors():
            objects = RunApp(PreparedRun(job=job, spec=spec, snapshots=(), secret_values={})).required_objects
            checking = preflight.check_resources([item for item in objects if not item.is_created])
            absent = wait_for_future(asyncio.run_coroutine_threadsafe(checking, event_loop()))
        return [item.absence for item in absent]

    def describe(self, job: Job, spec: RunSpec) -> Sequence[tuple[str, str]]:
        """Return label and value pairs that describe where the run executes."""
        gpus = " or ".join(str(request) for request in spec.gpu_requests) or "no GPU"
        if spec.nodes > 1:
            gpus = f"{spec.nodes} nodes of {gpus}"
        volume_rows = [("volume", f"{item.mount_path} is Modal's volume {item.name}") for item in job.volumes]
        volume_rows += [("bucket", f"{item.mount_path} is the bucket {item.name}") for item in job.buckets]
        return [("where", f"Modal, app {spec.app_name}, {gpus}"), ("image", job.image), *volume_rows]

    def start(self, run: PreparedRun, *, owned: bool) -> ModalExecution:
        """Begin to build, upload and start a run. ``ModalExecution.wait_started`` waits until it is submitted.

        Args:
            run: The run with its files.
            owned: Whether the run ends when this process exits.
        """
        with translated_client_errors():
            run_app = RunApp(run)
        return ModalExecution.started(run_app, owned=owned)

    def attach(self, job: Job, handle: Handle) -> ModalExecution:
        """Return a run that was started before, from any machine with the same account."""
        return ModalExecution.attached(job, handle)

    def attach_by_call_id(self, call_id: str) -> ModalExecution | None:
        """Return a run of which only the id of its call on Modal is known, such as ``"fc-01ABC"``.

        It has its log and its result. Its command, files and volumes are not known.

        Returns:
            The run; None if this is not the id of a call on Modal.
        """
        if not call_id.startswith(CALL_ID_PREFIX):
            return None
        created_at = datetime.now(UTC) - MODAL_CALL_RETENTION
        job = Job(run_id=call_id, command="", workdir="", run_folder="", created_at=created_at.isoformat())
        return ModalExecution.attached(job, {"call_id": call_id})

    def diagnose(self) -> Iterator[CheckResult]:
        """Check what this backend needs on this machine, for ``skyrl-modal doctor``."""
        yield from checks.diagnose()
        yield from preflight.diagnose()

    def ls(self, volume: AnyVolume, path: str) -> Sequence[VolumeEntry]:
        """List a folder of a volume, or one file.

        Raises:
            FileNotFoundError: There is no such volume or path.
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        return volumes.list_folder(only_volume(volume, path), path)

    def checkpoint_listing(self, volume: AnyVolume, path: str) -> Listing:
        """Return a checkpoint folder on a volume. Nothing is requested before it is read."""
        from skyrl_modal.backends.modal.checkpoint_listing import ModalCheckpointListing

        return ModalCheckpointListing(only_volume(volume, path), path)

    def kind(self, volume: AnyVolume, path: str, *, follow_links: bool = True) -> VolumeEntryKind | None:
        """Return what a path of a volume is; None if there is no such volume or path. Links are never followed.

        Raises:
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        try:
            return volumes.find_kind(only_volume(volume, path), path)
        except PathNotFound:
            return None

    def walk(self, volume: AnyVolume, path: str) -> Iterator[VolumeEntry]:
        """Yield all entries below a folder of a volume, or one file.

        Raises:
            FileNotFoundError: There is no such volume or path.
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        return volumes.walk_folder(only_volume(volume, path), path)

    def read(self, volume: AnyVolume, path: str) -> Iterator[bytes]:
        """Yield the content of a file of a volume in pieces.

        Raises:
            FileNotFoundError: There is no such volume or path.
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        return volumes.read_file(only_volume(volume, path), path)

    def remove(self, volume: AnyVolume, path: str, *, recursive: bool) -> None:
        """Remove a file of a volume, or a folder with its content.

        Raises:
            FileNotFoundError: There is no such volume or path.
            SpecError: It is a folder, and ``recursive`` is False.
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        volumes.remove(only_volume(volume, path), path, recursive=recursive)

    # What transfers files is imported in these methods, since a run does not need it.

    def pull(self, volume: AnyVolume, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from a volume to this machine. Return warnings about entries that were not copied.

        Raises:
            FileNotFoundError: There is no such volume or path.
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        from skyrl_modal.backends.modal.download import download

        return download(only_volume(volume, path), path, local, options)

    def push(self, volume: AnyVolume, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from this machine to a volume. Return warnings about entries that were not copied.

        Raises:
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        from skyrl_modal.backends.modal.upload import upload

        return upload(only_volume(volume, path), local, path, options)
