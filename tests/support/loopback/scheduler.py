"""Assignment of inputs to containers, and the lifecycle of both.

Assumptions about Modal (documentation, guides "Failures and retries" and "Preemption", and messages that users have
published):
- A container runs the inputs of its function one after another, and exits when it was idle for the scaledown window.
- At a timeout the input immediately gets the status TIMEOUT. Its container receives a cancellation, and is killed after
  a grace period.
- A container that dies is replaced and its input is run again, which does not count as a retry. After too many deaths
  the input fails; their number and the text of that failure are not documented.
- Preemption sends SIGINT to the entrypoint, and SIGKILL after a grace period. A new container runs the same input: when
  the old one has exited, or already before (see `Mode.replacement_delay`).
- Lines about a container are in the app's log with the container's id, and without the id of a call.
- The error of a cancelled call has the same text for every cause.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from typing import Any

from modal_proto import api_pb2

from . import logs, texts
from .container import ContainerProcess
from .records import FAILURE, TERMINATED, TIMEOUT, App, Container, Function, Input
from .rpc import Service

STARTUP_TIMEOUT = 300
MAX_CONTAINERS = 64


class Scheduler(Service):
    """Starts and stops containers, and assigns inputs to them. All methods run in the server's thread."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.containers: dict[str, Container] = {}  # includes those that have exited
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.plane.errors.append(task.exception())

    def of_app(self, app: App) -> list[Container]:
        return [c for c in self.containers.values() if c.function.app is app and c.state != "done"]

    # -- inputs ------------------------------------------------------------------------------------------------------

    def enqueue(self, entry: Input) -> None:
        entry.state, entry.output = "pending", None
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.call.function.app.stopped or entry.cancelled:
            self.finish(entry, TERMINATED)
            return
        entry.call.function.queue.append(entry)
        self.dispatch(entry.call.function)

    def dispatch(self, function: Function) -> None:
        """Assign waiting inputs to idle containers, and start containers for the other inputs."""
        if function.app.stopped:
            return
        if function.cluster_size:
            self.plane.clusters.dispatch(function)
            return
        for container in function.containers:
            if function.queue and container.waiter and not container.waiter.done() and not container.retiring:
                container.waiter.set_result(function.queue.pop(0))
        starting = sum(c.state == "starting" and not c.retiring for c in function.containers)
        most = function.definition.concurrency_limit or MAX_CONTAINERS
        for _ in range(min(len(function.queue) - starting, most - len(function.containers))):
            self.launch(Container(function))

    def assign(self, container: Container, entry: Input) -> None:
        """Record that a container starts to run an input."""
        entry.state, entry.started_at = "running", time.time()
        entry.containers.append(container)
        container.running.append(entry)
        container.state = "busy"
        self.state(container, api_pb2.TASK_STATE_ACTIVE)
        limit = container.function.definition.timeout_secs
        if limit and entry.timer is None:
            entry.timer = asyncio.get_running_loop().call_later(limit, self._timed_out, entry, container, limit)

    def owns(self, container: Container, entry: Input) -> bool:
        """Return whether a container is the one that currently runs an input."""
        return entry.state == "running" and container in entry.containers[-1:]

    def finish(self, entry: Input, status: int, exception: str = "", item: Any = None) -> None:
        """Handle the end of an attempt at an input: schedule a retry, or publish the output."""
        if entry.state == "done":
            return
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry in entry.call.function.queue:
            entry.call.function.queue.remove(entry)
        policy = entry.call.function.definition.retry_policy
        again = status in (FAILURE, TIMEOUT) and entry.retry_count < policy.retries
        if again and not entry.call.client_retries and not entry.cancelled and not entry.call.function.app.stopped:
            delay = min(policy.initial_delay_ms * policy.backoff_coefficient**entry.retry_count, policy.max_delay_ms)
            entry.retry_count += 1
            entry.state = "waiting"
            asyncio.get_running_loop().call_later(delay / 1000, self._retry, entry)
            return
        result = api_pb2.GenericResult(status=status, exception=exception)  # type: ignore[arg-type]  # protobuf keeps enums as numbers
        if item:
            result.CopyFrom(item.result)
        if status == TERMINATED:
            result.exception = texts.CANCELLED
        entry.output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=entry.index,
            input_id=entry.id,
            data_format=item.data_format if item else api_pb2.DATA_FORMAT_UNSPECIFIED,
            task_id=entry.containers[-1].id if entry.containers else "",
            input_started_at=entry.started_at,
            output_created_at=time.time(),
            retry_count=entry.retry_count,
        )
        entry.state = "done"
        entry.call.finished.append(entry)
        entry.call.notify()

    def _retry(self, entry: Input) -> None:
        if entry.state == "waiting":
            self.enqueue(entry)

    def _timed_out(self, entry: Input, container: Container, limit: int) -> None:
        if not self.owns(container, entry) and entry.gang is None:
            return
        if entry.gang is not None and (entry.gang is not container.gang or entry.state != "running"):
            return
        text = f"Task's current input {entry.id} hit its timeout of {limit}s"
        self.plane.logs.system(container, f'Task\'s current input(s) ["{entry.id}"] cancelled because: {text}')
        holders = entry.gang.members if entry.gang else [container]
        if entry.gang:
            self.plane.clusters.settle(entry.gang)
        self.finish(entry, TIMEOUT, text)
        for holder in holders:
            holder.retiring = True
            self.send_cancellation(holder, entry, text)
            self.kill_later(holder, self.plane.timeout_grace, "timeout")

    def cancel(self, entry: Input, *, terminate: bool = False) -> None:
        # A second cancellation can still terminate the container, which then does not wait for the end of its grace.
        if entry.state == "done" or (entry.cancelled and not terminate):
            return
        entry.cancelled = True
        if entry.state != "running":
            self.finish(entry, TERMINATED)
            for member in entry.gang.members if entry.gang else []:
                self.stop(member, "cancelled", self.plane.stop_grace)
            return
        holders = entry.gang.members if entry.gang else entry.containers[-1:]
        for holder in holders:
            if terminate and holder.process:
                holder.stop_cause = "cancelled"
                holder.process.kill()
            else:
                self.send_cancellation(holder, entry, "Input was cancelled by user")
                self.kill_later(holder, self.plane.cancel_grace, "cancelled", entry)

    def send_cancellation(self, container: Container, entry: Input, reason: str) -> None:
        """Add a cancellation to the reply to the container's next heartbeat."""
        container.cancellations.append((entry.id, reason))
        container.cancel_event.set()

    # -- containers --------------------------------------------------------------------------------------------------

    def launch(self, container: Container) -> None:
        self.containers[container.id] = container
        container.function.containers.append(container)
        self.run(self._start(container))

    async def _start(self, container: Container) -> None:
        plane = self.plane
        self.state(container, api_pb2.TASK_STATE_CREATED)
        process = ContainerProcess(plane, container)
        try:
            await self._wait_for_worker(container)
            await self._delay_start(container)
            self.state(container, api_pb2.TASK_STATE_LOADING_IMAGE)
            image_id = container.function.definition.image_id
            self.plane.logs.system(container, texts.IMAGE_PULL.format(image_id=image_id))
            await plane.clusters.prepare(container, process)
            if not container.retiring:
                await asyncio.to_thread(process.stage)
                await plane.serve_container(container, process.socket)
            if container.retiring:
                await self._end(container, process, 0)
                return
            container.process = process
            await process.start(lambda: self._exited(container, process))
        except Exception as exc:
            plane.errors.append(exc)
            self.plane.logs.system(container, f"The loopback could not start the container: {exc!r}")
            process.kill()
            if process.process is None:  # otherwise the exit of the process is handled by _exited
                container.function.startup_failures = 1 << 20
                await self._end(container, process, 1)
            return
        limit = container.function.definition.startup_timeout_secs or STARTUP_TIMEOUT
        limit = max(limit, plane.startup_floor)
        timer = asyncio.get_running_loop().call_later(limit, self._startup_timed_out, container, limit)
        container.timers.append(timer)

    async def _wait_for_worker(self, container: Container) -> None:
        """Wait for a worker, if the mode requires it. Modal reports the reason in the app's log."""
        function, wait = container.function, self.plane.mode.capacity_wait
        if not wait:
            return
        worker = f"GPU_{function.gpus[0][0]}" if function.gpus else "CPU"
        self.state(container, api_pb2.TASK_STATE_QUEUED)
        line = texts.waiting_for_worker(function.name or function.definition.function_name, function.id, worker)
        self.plane.logs.function_line(function, line)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and not container.retiring:
            await asyncio.sleep(min(0.05, wait))
            if container.gang is None and not function.queue:
                container.retiring = True  # its input was cancelled
        self.state(container, api_pb2.TASK_STATE_WORKER_ASSIGNED)

    async def _delay_start(self, container: Container) -> None:
        """Apply the fault ``slow_start``, until the container is stopped."""
        deadline = time.monotonic() + self.plane.faults.start_delay
        while time.monotonic() < deadline and not container.retiring:
            await asyncio.sleep(0.05)

    def _startup_timed_out(self, container: Container, limit: int) -> None:
        if container.state == "starting" and container.process:
            text = f"Container startup hit its timeout of {limit}s"
            container.result = api_pb2.GenericResult(status=TIMEOUT, exception=text)
            container.process.kill()

    def state(self, container: Container, state: int) -> None:
        self.plane.logs.add(container, logs.SYSTEM, "", task_state=state)

    def kill_later(self, container: Container, grace: float, why: str, entry: Input | None = None) -> None:
        def kill() -> None:
            if container.process and (entry is None or entry in container.running):
                container.stop_cause = container.stop_cause or why
                container.process.kill()

        container.timers.append(asyncio.get_running_loop().call_later(grace, kill))

    def stop(self, container: Container, why: str, grace: float) -> None:
        """Stop an idle container immediately, and a busy one by SIGINT. Kill it after the grace period."""
        if container.state == "done":
            return
        container.retiring, container.stop_cause = True, container.stop_cause or why
        if container.waiter is not None and not container.waiter.done():
            container.waiter.set_result(None)
        elif container.process is not None and not (why == "idle" or container.state == "idle"):
            container.process.signal(signal.SIGINT)
        self.kill_later(container, grace, why)

    def preempt(self, container: Container, grace: float | None = None, *, alone: bool = False) -> None:
        self.plane.logs.system(container, texts.PREEMPTED)
        loop, delay = asyncio.get_running_loop(), self.plane.mode.replacement_delay
        for member in container.gang.members if container.gang and not alone else [container]:
            self.stop(member, "preempted", self.plane.preempt_grace if grace is None else grace)
        if delay is not None:
            container.replace_at = loop.time() + delay
            for entry in list(container.running):
                loop.call_later(delay, self._replace, container, entry)

    def _replace(self, container: Container, entry: Input) -> None:
        """Run the input of a preempted container again, unless it has ended or is already being run again."""
        gang = container.gang
        if entry.state != "running" or (gang is not None and entry.gang is not gang):
            return
        if gang is None and not self.owns(container, entry):
            return
        if gang is not None:
            self.plane.clusters.settle(gang)
        self.enqueue(entry)

    def stop_app(self, app: App) -> None:
        for call in self.plane.calls.calls.values():
            if call.function.app is app:
                for entry in call.inputs:
                    self.finish(entry, TERMINATED)
        for container in self.of_app(app):
            if container.process is not None:
                self.plane.logs.system(container, texts.RUNNER_TERMINATED)
            self.stop(container, "app", self.plane.stop_grace)

    def scale_down(self) -> None:
        for container in list(self.containers.values()):
            if container.state != "idle" or container.retiring:
                continue
            window = container.function.definition.task_idle_timeout_secs or self.plane.scaledown
            if time.time() - container.ready_at > window:
                self.stop(container, "idle", self.plane.stop_grace)

    def _exited(self, container: Container, process: ContainerProcess) -> None:
        code = process.reap()
        self.run(self._end(container, process, code))

    async def _end(self, container: Container, process: ContainerProcess, code: int) -> None:
        """Handle the exit of a container: settle its inputs, and start another container if one is needed."""
        for timer in container.timers:
            timer.cancel()
        started = container.state != "starting"
        if not started and code:
            entries = self.plane.logs.of(container.function.app).entries
            printed = "".join(entry.data for entry in entries if entry.container_id == container.id)
            if printed.startswith("bwrap: "):
                self.plane.errors.append(RuntimeError(printed))
        container.state, container.returncode, container.finished_at = "done", code, time.time()
        self.plane.logs.system(container, texts.CONTAINER_ENDED.format(container_id=container.id))
        self.state(container, api_pb2.TASK_STATE_COMPLETED)
        await self.plane.end_container(container)
        await process.disconnect()
        await self.plane.tunnels.end(container)
        await asyncio.to_thread(process.clean)
        container.process = None
        function = container.function
        function.containers.remove(container)
        if container.gang is not None:
            self.plane.clusters.ended(container, code)
        else:
            for entry in container.running:
                if self.owns(container, entry):
                    self.handle_lost_container(entry, container.stop_cause, code, container)
            if not started and not container.stop_cause:
                self._startup_failed(function, container, code)
        container.running.clear()
        container.done.set()
        self.dispatch(function)
        self.plane.apps.settle(function.app)

    def handle_lost_container(self, entry: Input, stop_cause: str, code: int, container: Container) -> None:
        """Handle an input whose container has exited without an output for it."""
        loop = asyncio.get_running_loop()
        if entry.cancelled or stop_cause in ("app", "cancelled"):
            self.finish(entry, TERMINATED)
        elif stop_cause == "preempted" and container.replace_at > loop.time():
            pass  # `preempt` has scheduled the replacement
        elif stop_cause == "preempted":
            self.enqueue(entry)
        elif container.gang is not None and not self.plane.mode.cluster_restarts:
            self.finish(entry, FAILURE, f"Container terminated unexpectedly with exit code {code}.")
        else:
            entry.crashes += 1
            if entry.crashes > self.plane.crashes_allowed:
                self.finish(entry, FAILURE, f"Container terminated unexpectedly with exit code {code}.")
            else:
                self.enqueue(entry)

    def _startup_failed(self, function: Function, container: Container, code: int) -> None:
        function.startup_failures += 1
        if function.startup_failures <= self.plane.crashes_allowed:
            return
        function.startup_failures = 0
        text = f"Container failed to start, with exit code {code}."
        result = container.result or api_pb2.GenericResult(status=FAILURE, exception=text)
        item = api_pb2.FunctionPutOutputsItem(result=result)
        for entry in list(function.queue):
            entry.retry_count = 1 << 20  # do not retry
            self.finish(entry, result.status, item=item)

    async def close(self) -> None:
        """Kill the remaining containers, and wait until they have exited."""
        for container in list(self.containers.values()):
            container.retiring, container.stop_cause = True, "app"
            if container.process:
                container.process.kill()
        for app in self.plane.apps.apps.values():
            app.state = api_pb2.APP_STATE_STOPPED
        left = [c for c in self.containers.values() if c.state != "done"]
        await asyncio.gather(*(asyncio.wait_for(c.done.wait(), 20) for c in left), return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
