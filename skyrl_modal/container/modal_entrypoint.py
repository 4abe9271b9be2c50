"""The function that Modal calls: it reloads the volumes, runs one rank of the job, and commits the volumes.

Modal imports it by the name of its module. It is not pickled, so the caller's Python version may differ from that of
the image.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import modal

from skyrl_modal.container.attempt_lease import AttemptLease, EarlierContainer, RunContinuedElsewhere
from skyrl_modal.container.caller_watch import CallerWatch, remove_caller_lease
from skyrl_modal.container.counted_text import CountedText
from skyrl_modal.container.environment import replaced_variables, run_environment
from skyrl_modal.container.events import RankDisconnected, RankEvent, RankJoined
from skyrl_modal.container.failures import describe_error
from skyrl_modal.container.function_errors import FunctionError, make_mask
from skyrl_modal.container.gpus import GpuProbe
from skyrl_modal.container.kept_records import KeptRecords
from skyrl_modal.container.live_view import FunctionView, print_message
from skyrl_modal.container.previous_container import Continue, Finished, Lost, PreviousContainer
from skyrl_modal.container.rank_connections import RankServer, connect_to_rank_zero, listen
from skyrl_modal.container.rank_worker import RankWorker
from skyrl_modal.container.replacement import ContainerUnusable, Replacements, exit_container
from skyrl_modal.container.stop_signals import RestartNeeded, run_with_stop_requests, wait_for_stop
from skyrl_modal.container.supervisor import Supervisor, SupervisorServices
from skyrl_modal.container.unpack import unpack_mounts
from skyrl_modal.container.unsaved_files import container_places
from skyrl_modal.container.usage_meter import UsageMeter, mark_counted, uncounted_age
from skyrl_modal.container.volume_commits import MountedVolume, VolumeCommits
from skyrl_modal.dataclass import replace
from skyrl_modal.event_queue import EventQueue, wait_interruptibly
from skyrl_modal.protocol.codec import decode, encode, from_json
from skyrl_modal.protocol.events import MessageEvent, StateEvent
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.leases import LEASE_DICT
from skyrl_modal.protocol.log_lines import state_line
from skyrl_modal.protocol.messages import Hello, RankFailed, Shutdown
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.start_deadline import seconds_to_start
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason

#: The port on which rank 0 of a cluster listens for the other ranks; one lower if Ray uses it.
CONTROL_PORT = 6378
#: Seconds to wait until Modal stops a cluster that it is to start again.
RESTART_TIMEOUT = 60.0
#: Seconds to wait for the reply to the request that the container exits.
EXIT_REQUEST_TIMEOUT = 1.0
#: Seconds after which Modal has killed a preempted container (https://modal.com/docs/guide/preemption).
PLATFORM_GRACE = 30.0
#: Seconds in which the other ranks have to join and exit if rank 0 only reports that the run is lost.
RELEASE_RANKS_TIMEOUT = 15.0


def run_job(
    job: str,
    archives: Mapping[str, str] | None = None,
    tokens: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Run one rank of a job to its end.

    Modal calls it again with the same arguments if the container was preempted or died; it then continues the run.

    Args:
        job: The run as JSON.
        archives: For each path of a mount, the name of the archive of its files.
        tokens: The run's ClusterTokens as a JSON object.

    Returns:
        The RunResultRecord as a JSON object; None on ranks other than 0.
    """
    record = from_json(Job, job)
    config: RankConfig | None = None
    try:
        config = _rank_config(record, decode(ClusterTokens, tokens or {}))
        return _run_rank(record, config, archives or {})
    except ContainerUnusable:
        exit_container()
    except (RestartNeeded, RunContinuedElsewhere, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # the exceptions by which Modal stops the function are none of these
        return _handle_error(FunctionError(record, config, error), record, config)


def _run_rank(record: Job, config: RankConfig, archives: Mapping[str, str]) -> dict[str, Any] | None:
    probe = GpuProbe.if_requested(record.gpus_per_node)
    label = f", rank {config.rank} of {config.nodes}" if config.nodes > 1 else ""
    task = os.environ.get("MODAL_TASK_ID", "unknown task")
    print_message(f"the container has started: Python {platform.python_version()}, {task}{label}")
    replaced = replaced_variables(record, run_environment(record, config))
    if replaced:
        print_message(
            f"the image or a stored secret defines {', '.join(replaced)}; the command has the run's own values"
        )
    store: Any = modal.Dict.from_name(LEASE_DICT, create_if_missing=True)
    started_at = None if record.rate is None or config.rank else time.time() - uncounted_age()
    lease = AttemptLease(store, record.run_id, config.rank, print_message, started_at)
    earlier = lease.acquire()
    try:
        volumes = _reload_volumes(record, config, earlier)
        config = config if probe is None else probe.apply_to(config)
        if config.rank == 0:
            return encode(_run_rank_zero(record, config, volumes, archives, lease, earlier))
        # If the run has already ended, rank 0 only reports the result and there is no cluster to join.
        if not PreviousContainer(record, print_message).is_finished:
            _run_worker(record, config, volumes, archives, lease)
        return None
    finally:
        lease.release()


def _open_volumes(job: Job, config: RankConfig | None) -> VolumeCommits:
    """Return the run's volumes."""
    clients = {volume.name: modal.Volume.from_name(volume.name) for volume in job.volumes}
    mounts = [MountedVolume(volume.name, volume.mount_path, clients[volume.name]) for volume in job.volumes]
    writable = [mount for mount, volume in zip(mounts, job.volumes, strict=True) if not volume.read_only]
    return VolumeCommits(mounts, writable, run_folder=job.run_folder, mask=make_mask(job, config))


def _reload_volumes(job: Job, config: RankConfig, earlier: EarlierContainer) -> VolumeCommits:
    """Return the volumes, with what an earlier container has committed."""
    volumes = _open_volumes(job, config)
    volumes.reload()
    if earlier.is_known or not PreviousContainer(job, print_message).may_run:
        return volumes
    print_message(
        f"an earlier container may still save its files; waiting {PLATFORM_GRACE:g} s, after which Modal kills it"
    )
    wait_interruptibly(threading.Event().wait, PLATFORM_GRACE)
    volumes.reload()
    return volumes


def _run_rank_zero(
    job: Job,
    config: RankConfig,
    volumes: VolumeCommits,
    archives: Mapping[str, str],
    lease: AttemptLease,
    earlier: EarlierContainer,
) -> RunResultRecord:
    folder, text, kept = RunFolder(job.run_folder), CountedText(), KeptRecords(lease.store, job)
    kept.restore()
    previous = PreviousContainer(job, print_message)
    for chunk in folder.read_output():
        text.count(chunk)
    usage = None if job.rate is None else UsageMeter(job, job.rate, lease.holder, earlier.killed)
    decision = previous.decide(was_ending=earlier.was_ending)
    match decision:
        case Finished(result):
            _release_other_ranks(config)
            return result
        case Lost(result):
            print_message(result.detail, result.cause)
            result = _with_digest(result if usage is None else usage.end(result), text)
            folder.write_result(result)
            volumes.commit()
            _release_other_ranks(config)
            return result
        case Continue():
            previous.remove_result()
    if job.gpus_per_node is None:
        job = replace(job, gpus_per_node=max(1, config.gpus or 0))
    replacements = Replacements(lease.store, job.run_id)
    with contextlib.ExitStack() as tunnels:
        supervisor = Supervisor(
            job,
            config,
            replace(
                _make_services(job, text, volumes, archives, kept, tunnels),
                replace_container=replacements.request,
                lease_store=lease.store,
                usage=usage,
            ),
            attempts=decision.attempts,
            history=decision.history,
            first_message=decision.message,
            start_timeout=None if previous.has_started else seconds_to_start(job),
        )
        with _watched_checkpoints(job, volumes):
            result, stopped_by = _run_supervisor(supervisor, job, volumes, lease)
    text.write(b"", final=True)
    result = _finish(folder, _with_digest(result, text), volumes)
    supervisor.release_checkpoints(result)
    if result.next_start is NextStart.NONE and job.nodes == 1:
        _exit_after_return()
    if usage is not None:  # with the time of the commits
        result = usage.add_to(result)
    kept.keep()
    if result.next_start is NextStart.NONE:
        if previous.was_replaced:
            replacements.forget()
        if job.lease is not None:
            remove_caller_lease(lease.store, job.run_id)
    if stopped_by is None and result.is_replaced:
        raise ContainerUnusable
    if stopped_by is None and result.next_start is not NextStart.NONE:
        # Another container of the cluster was lost or is ending. Modal stops this one as well and starts all again.
        lease.release()
        stopped_by = wait_for_stop(RESTART_TIMEOUT)
        if stopped_by is None:
            raise RestartNeeded(f"the cluster has to start again: {result.detail or result.cause}")
    if stopped_by is not None:
        raise stopped_by
    return result


def _watched_checkpoints(job: Job, volumes: VolumeCommits) -> AbstractContextManager[object]:
    """Return what commits the volumes after each new checkpoint, for a ``with`` statement."""
    folders = [folder for folder in job.checkpoint_folders if volumes.is_on_writable(folder)]
    if not folders:
        return contextlib.nullcontext()
    from skyrl_modal.container.checkpoint_watch import CheckpointWatch  # imported here, since many runs have none

    return contextlib.closing(CheckpointWatch(folders, volumes.commit_folder))


def _exit_after_return() -> None:
    """Request that this container exits when the function has returned: Modal would keep it, and charge it, longer.

    A run is one call, so that the container is not needed again. Without a reply, Modal ends it when it is idle.
    """
    import modal.experimental  # imported here, since it is needed only now

    def request() -> None:
        with contextlib.suppress(Exception):  # any error of Modal's client: the result must reach the caller
            modal.experimental.stop_fetching_inputs()

    thread = threading.Thread(target=request, name="exit", daemon=True)
    thread.start()
    thread.join(EXIT_REQUEST_TIMEOUT)


def _make_services(
    job: Job,
    text: CountedText,
    volumes: VolumeCommits,
    archives: Mapping[str, str],
    kept: KeptRecords,
    tunnels: contextlib.ExitStack,
) -> SupervisorServices:
    return SupervisorServices(
        live=FunctionView(text.write),
        emit=lambda event: _handle_event(event, volumes, kept),
        # Ray listens on 127.0.0.1 and requires its token, so the public URL gives no access by itself.
        open_url=lambda port: tunnels.enter_context(modal.forward(port)).url,
        lost_places=container_places,
        create_files=lambda: unpack_mounts(archives, job.storage_paths),
        commit_logs=volumes.commit_run_folder,
    )


def _run_supervisor(
    supervisor: Supervisor, job: Job, volumes: VolumeCommits, lease: AttemptLease
) -> tuple[RunResultRecord, BaseException | None]:
    """Run the supervisor to its end, and stop it if Modal stops this container or if a lease requires it.

    Returns:
        The result, and the exception by which Modal stopped the container; None if it did not.

    Raises:
        RunContinuedElsewhere: Another container has continued the run, since this one did not renew its lease in time.
    """

    def request_stop(reason: StopReason) -> None:
        if reason is StopReason.CONTAINER_ENDING:
            lease.mark_ending()
            volumes.expect_end()
        supervisor.request_stop(reason)

    lease.call_if_lost(lambda: supervisor.request_stop(StopReason.KILL))
    watch = None
    if job.lease is not None:
        watch = CallerWatch(
            lease.store, job.run_id, job.lease, lambda: supervisor.request_stop(StopReason.LEASE_EXPIRED)
        )
    result, stopped_by = run_with_stop_requests(supervisor.run, request_stop)
    if watch is not None:
        watch.stop()
    if lease.is_lost:
        raise RunContinuedElsewhere("another container has continued the run")
    return result, stopped_by


def _with_digest(result: RunResultRecord, text: CountedText) -> RunResultRecord:
    return replace(result, output=replace(result.output, live=text.digest))


def _finish(folder: RunFolder, result: RunResultRecord, volumes: VolumeCommits) -> RunResultRecord:
    """Write the result to the volume and commit all volumes. Return the result with the outcome of the commit."""
    try:
        # The caller needs it on the volume too: a cancelled call returns no value.
        folder.write_result(result)
    except OSError as error:
        print_message(f"result.json could not be written: {describe_error(error)}")
    with contextlib.suppress(OSError):  # the caller then reads output.log itself
        folder.write_output_end()
    volumes.join_background_commits()
    failure = volumes.commit()
    if failure is None:
        return result
    result = replace(result, volume_error=failure)
    if result.state is not RunState.SUCCEEDED:
        print_message(failure)
        return result
    # The files of the run are not stored, so it has not succeeded, whatever the command returned.
    print_message(failure, FailureCause.VOLUME_COMMIT_FAILED)
    return replace(
        result,
        state=RunState.FAILED,
        returncode=LAUNCHER_FAILED,
        cause=FailureCause.VOLUME_COMMIT_FAILED,
        detail=failure,
    )


def _handle_event(event: MessageEvent | StateEvent, volumes: VolumeCommits, kept: KeptRecords) -> None:
    """Print a message or a new state. Make a state visible on the volume too, for readers in other processes."""
    if isinstance(event, MessageEvent):
        print_message(event.text, event.cause)
        return
    if event.state is RunState.RUNNING:
        # The command starts after the commit: if the container dies before, the attempt was not started.
        volumes.commit_run_folder()
        kept.keep()
    else:
        volumes.commit_run_folder_in_background()
    # A run may have no writable volume, and a commit may fail or be late. The state is in the log then.
    sys.stderr.write(state_line(event.state, event.attempt))
    sys.stderr.flush()


def _run_worker(
    job: Job, config: RankConfig, volumes: VolumeCommits, archives: Mapping[str, str], lease: AttemptLease
) -> None:
    """Run a rank other than 0 to its end. Rank 0 waits until its volumes are committed."""
    worker = RankWorker(
        job,
        config,
        report_locally=lambda text: print_message(f"rank {config.rank}: {text}"),
        lost_places=container_places,
        create_files=lambda: unpack_mounts(archives, job.storage_paths),
        commit_logs=volumes.commit_run_folder,
    )

    def request_stop(reason: StopReason) -> None:
        if reason is StopReason.CONTAINER_ENDING:
            lease.mark_ending()
            volumes.expect_end()
        # Modal may raise repeatedly. Rank 0, which is notified too, decides how long its command may save files.
        if reason is not StopReason.KILL:
            worker.request_stop(reason)

    lease.call_if_lost(lambda: worker.request_stop(StopReason.KILL))
    try:
        with _watched_checkpoints(job, volumes):
            _, stopped_by = run_with_stop_requests(worker.run_until_commit, request_stop)
        error = volumes.commit()
        if error is not None:
            worker.report(error)
    finally:
        worker.close()
        mark_counted()
    if stopped_by is not None:
        raise stopped_by


def _release_other_ranks(config: RankConfig) -> None:
    """End the other ranks of a run that does not continue. They may already have exited themselves."""
    if config.nodes == 1:
        return
    events: EventQueue[RankEvent] = EventQueue()
    server = RankServer(listen(config.port), token=config.tokens.ranks, nodes=config.nodes, put=events.put)
    deadline, running = time.monotonic() + RELEASE_RANKS_TIMEOUT, config.nodes - 1
    with contextlib.suppress(queue.Empty):
        while running:
            match events.get(deadline):
                case RankJoined(rank):
                    server.send(rank, Shutdown())
                case RankDisconnected():
                    running -= 1
    server.close()


def _handle_error(error: FunctionError, job: Job, config: RankConfig | None) -> dict[str, Any] | None:
    """Report an error of this module or of the supervisor. Return the result of the run; None on ranks other than 0."""
    rank = 0 if config is None else config.rank
    print_message(f"the launcher failed in the container:\n{error.traceback.rstrip()}", error.cause)
    error.write_log(rank)
    if config is not None and rank:
        _report_failed_rank(error, config)
        return None
    result = error.result()
    if config is not None:
        with contextlib.suppress(OSError):  # the supervisor may still listen
            _release_other_ranks(config)
    with contextlib.suppress(Exception):  # what failed may be the volumes themselves
        result = replace(result, volume_error=_open_volumes(job, config).commit())
    return encode(result)


def _report_failed_rank(error: FunctionError, config: RankConfig) -> None:
    """Report to rank 0 that this rank cannot continue. Rank 0 may have exited, or may know it already."""
    hello = Hello(config.tokens.ranks, config.rank, config.gpus)
    address = (config.addresses[0], config.port)
    with contextlib.suppress(OSError):
        connection = connect_to_rank_zero(
            address, hello, timeout=RELEASE_RANKS_TIMEOUT, put=lambda event: None, is_cancelled=lambda: False
        )
        if connection is not None:
            connection.send(RankFailed(error.cause, error.summary))
            connection.close()


def _rank_config(job: Job, tokens: ClusterTokens) -> RankConfig:
    """Return the rank of this container."""
    if job.nodes == 1:
        return RankConfig(tokens=tokens, has_modal_runtime=True)
    cluster = modal.Cluster.from_context()
    is_port_used = job.ray is not None and job.ray.port == CONTROL_PORT
    return RankConfig(
        rank=cluster.container_rank(),
        addresses=tuple(cluster.container_ips(family="ipv4")),
        port=CONTROL_PORT - 1 if is_port_used else CONTROL_PORT,
        tokens=tokens,
        has_modal_runtime=True,
    )
