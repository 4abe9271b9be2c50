"""The start of a run on Modal: its app is built, uploaded and started, and an owned run is followed to its end."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import modal

from skyrl_modal.backends.base import Handle
from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.call import ModalCall
from skyrl_modal.backends.modal.caller_lease import CallerLease
from skyrl_modal.backends.modal.client_output import reported_to
from skyrl_modal.backends.modal.deadline_call import DeadlineCall
from skyrl_modal.backends.modal.errors import error_text, suppressed_client_errors, translate_error
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.backends.modal.event_loop import event_loop
from skyrl_modal.backends.modal.log_follower import LogFollower
from skyrl_modal.backends.modal.preflight import RequiredObject, check_resources
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.backends.modal.start_progress import StartProgress
from skyrl_modal.dataclass import replace
from skyrl_modal.gitfiles.report import format_size
from skyrl_modal.protocol.events import HandleEvent
from skyrl_modal.protocol.start_deadline import with_submission_time

#: Seconds for the request that ends the app of a run that has ended. Without it, Modal ends the app when it is idle.
STOP_APP_TIMEOUT = 5.0
#: Seconds for requests when the process exits.
EXIT_TIMEOUT = 5.0

#: The starts of owned runs that have not ended.
_owned_starts: set[ModalRunStart] = set()


class ModalRunStart:
    """Builds, uploads and starts a run's app; follows the run if this process owns it.

    Args:
        run_app: The run's app.
        owned: Whether the run ends when this process exits.

    Attributes:
        owned: Whether the run ends when this process exits.
        channel: The events of an owned run.
        call: The call, when it has been submitted to Modal.
        handle: What ``ModalBackend.attach`` finds the run by; empty before ``call`` is known.
        url: The app's page; None before the app exists.
        progress: What the run waits for.
    """

    def __init__(self, run_app: RunApp, *, owned: bool) -> None:
        self.owned = owned
        self.channel = EventChannel(event_loop())
        self.call: concurrent.futures.Future[ModalCall] = concurrent.futures.Future()
        self.handle: Handle = {}
        self.url: str | None = None
        self.progress = StartProgress(_resources(run_app))
        self._app = run_app
        self._lease = CallerLease(run_app.job.run_id, run_app.spec.lease) if owned else None
        self._task = asyncio.run_coroutine_threadsafe(self._run_app(), event_loop())
        if owned:
            _owned_starts.add(self)
            self._task.add_done_callback(lambda _: _owned_starts.discard(self))
            _end_runs_at_exit()

    def cancel(self) -> None:
        """Abandon the start, or end the owned run's app with its run."""
        self._task.cancel()

    def end_at_exit(self) -> None:
        """Cancel the run, or abandon its start, since this process exits."""
        if not self.call.done() or self.call.exception() is not None:
            self._task.cancel()
            return
        cancelling = asyncio.run_coroutine_threadsafe(self.call.result().cancel(now=False, retry=False), event_loop())
        # If it fails, the lease ends the run.
        with suppressed_client_errors(), contextlib.suppress(concurrent.futures.CancelledError):
            cancelling.result(EXIT_TIMEOUT)

    async def _run_app(self) -> None:
        """Build, upload and start the app; if this process owns the run, stream it until it ends."""
        has_followed = False
        try:
            await self._prepare()
            app, function = await asyncio.to_thread(self._app.define)
            for warning in self._app.warnings:
                self.channel.warning(warning)
            async with contextlib.AsyncExitStack() as stack:
                call = await self._submit(stack, app, function)
                self.handle = self._app.handle(call.id)
                self.call.set_result(call)
                if self.owned:
                    self.channel.put(HandleEvent(self.handle))
                    folder = VolumeRunFolder(self._app.job)
                    await LogFollower(call, self._app.job, folder, app, self.progress).follow(self.channel)
                    has_followed = True
        except asyncio.CancelledError:
            self._abandon(KeyboardInterrupt())
        except BaseException as error:
            if has_followed:
                # The run has its result. Modal ends the app when it receives no more signs of life from this process.
                self.channel.warning(f"the app may run for some more seconds: {error_text(error)}")
                self.channel.finish()
            else:
                self._abandon(await translate_error(error, self._app.job, self._app.spec))
        else:
            self.channel.finish()
        finally:
            self._app.release()

    async def _prepare(self) -> None:
        """Check that Modal is reachable, and make the archives of the files meanwhile."""
        self.progress.begin("checking that Modal is reachable")
        making = asyncio.ensure_future(asyncio.to_thread(self._app.make_archives))
        try:
            self._app.leave_out(await self._check(self._app.required_objects))
        finally:
            self.progress.begin("compressing files")
            # The thread cannot be interrupted, and what it creates is removed after its end.
            await asyncio.wait([making])
        making.result()

    async def _check(self, required: Sequence[RequiredObject]) -> Sequence[RequiredObject]:
        """Check that Modal is reachable, and begin the lease meanwhile. Return the optional objects that are absent."""
        if self._lease is None:
            return await check_resources(required)
        beginning = asyncio.ensure_future(self._lease.begin())
        try:
            absent = await check_resources(required)
            failure = await beginning
        finally:
            beginning.cancel()
        if failure is not None:
            self._lease = None
            self.channel.warning(
                f"the run has no lease ({failure}): Modal ends it some minutes after it has lost the connection to "
                "this process"
            )
        return absent

    async def _submit(
        self, stack: contextlib.AsyncExitStack, app: modal.App, function: modal.Function[..., Any, Any]
    ) -> ModalCall:
        """Build the image, upload the files and call the function. The app of an owned run ends with the stack."""
        job = self._app.job
        files = " and ".join(f"{mount.files:,} files ({format_size(mount.bytes)})" for mount in job.mounts)
        step = f"building missing layers of the image, and uploading missing files of {files or 'no mounts'}"
        self.channel.message(step)
        begin = time.monotonic()
        self.progress.begin("creating the app")
        with reported_to(self.progress):
            if self._lease is not None:
                job = replace(job, lease=self._lease.seconds)
                renewing = asyncio.ensure_future(self._lease.renew())
                stack.callback(renewing.cancel)
            await stack.enter_async_context(app.run(detach=not self.owned or self._lease is not None))
            if self._lease is not None:
                stack.push_async_callback(_stop_app, app)
                stack.callback(renewing.cancel)  # now: the container of a run that has ended has removed the entry
            self.url = await app.get_dashboard_url.aio()
            job = with_submission_time(job)
            self._app.job = replace(self._app.job, submitted_at=job.submitted_at)
            function_call = await function.spawn.aio(*self._app.arguments(job))
        self.progress.end()
        self._app.release()
        call = DeadlineCall(function_call.object_id, function_call, job, VolumeRunFolder(job), is_new=True)
        self.channel.message(f"submitted to Modal after {time.monotonic() - begin:.1f} s (call {call.id}): {self.url}")
        return call

    def _abandon(self, error: BaseException) -> None:
        self.progress.end()
        if not self.call.done():
            self.call.set_exception(error)
        self.channel.finish(error)


def _resources(run_app: RunApp) -> str:
    """Return what the run needs a container with, such as ``"H100:8"``."""
    gpus = " or ".join(map(str, run_app.spec.gpu_requests))
    if run_app.job.nodes > 1:
        return f"{run_app.job.nodes} containers" + (f" with {gpus} each" if gpus else "")
    return gpus or "a container"


async def _stop_app(app: modal.App) -> None:
    """End the app of an owned run, which is detached: leaving it does not end it."""
    stop = getattr(app, "stop", None)
    if stop is None:  # before modal 1.6.4: Modal ends the app when its call and its containers have ended
        return
    with suppressed_client_errors():
        async with asyncio.timeout(STOP_APP_TIMEOUT):
            await stop.aio()


@functools.cache
def _end_runs_at_exit() -> None:
    """Register a handler that ends owned runs when the process exits. It is called before that of the event loop."""
    pid = os.getpid()

    def end_runs() -> None:
        for start in list(_owned_starts) if os.getpid() == pid else []:
            start.end_at_exit()

    atexit.register(end_runs)
