"""RPCs that containers make: to fetch inputs, to return outputs, and heartbeats.

Assumptions about Modal: the worker passes one input at a time to a container, and so knows which input it runs.
Cancellations are sent in the reply to a heartbeat. An idle container receives a kill switch instead of an input.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from .container import HEARTBEAT_INTERVAL
from .records import Container, Input
from .rpc import Context, Service

INPUT_POLL_SECONDS = 20.0
HEARTBEAT_POLL_SECONDS = HEARTBEAT_INTERVAL - 1.0


class Worker(Service):
    """RPCs on a container's socket."""

    async def _next_input(self, container: Container) -> Input | None:
        """Wait for an input, and return it, or None if the container must exit.

        Raises:
            TimeoutError: There is no input yet.
        """
        scheduler, function = self.plane.scheduler, container.function
        if container.gang is not None:
            return await self.plane.clusters.next_input(container)
        unfinished = [entry for entry in container.running if scheduler.owns(container, entry)]
        if unfinished:
            return unfinished[0]  # the reply with the input was lost
        if container.retiring or function.app.stopped:
            return None
        if function.queue:
            return function.queue.pop(0)
        container.waiter = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(asyncio.shield(container.waiter), INPUT_POLL_SECONDS)
        except asyncio.CancelledError:
            if container.waiter.done() and (entry := container.waiter.result()) is not None:
                function.queue.insert(0, entry)
                asyncio.get_running_loop().call_soon(scheduler.dispatch, function)
            raise
        finally:
            container.waiter = None

    async def FunctionGetInputs(
        self, request: api_pb2.FunctionGetInputsRequest, context: Context
    ) -> api_pb2.FunctionGetInputsResponse:
        container, scheduler = context.calling_container, self.plane.scheduler
        if container.state in ("starting", "busy") and not container.running:
            container.state, container.ready_at = "idle", time.time()
            container.function.startup_failures = 0
            scheduler.state(container, api_pb2.TASK_STATE_IDLE)
        try:
            entry = await self._next_input(container)
        except TimeoutError:
            return api_pb2.FunctionGetInputsResponse()
        if entry is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        if entry not in container.running:
            if container.process:
                container.process.drain()
            scheduler.assign(container, entry)
        item = api_pb2.FunctionGetInputsItem(
            input_id=entry.id,
            input=entry.payload,
            function_call_id=entry.call.id,
            function_call_invocation_type=entry.call.invocation,  # type: ignore[arg-type]  # protobuf keeps enums as numbers
            retry_count=entry.retry_count,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest, context: Context) -> Empty:
        container, scheduler = context.calling_container, self.plane.scheduler
        if container.process:
            container.process.drain()
        for item in request.outputs:
            entry = self.plane.calls.inputs[item.input_id]
            if entry in container.running:
                container.running.remove(entry)
                container.ready_at = time.time()
            if container.gang is not None:
                self.plane.clusters.put_output(container, entry, item)
            elif scheduler.owns(container, entry) and entry.retry_count == item.retry_count:
                scheduler.finish(entry, item.result.status, item=item)
        return Empty()

    async def ContainerHeartbeat(
        self, request: api_pb2.ContainerHeartbeatRequest, context: Context
    ) -> api_pb2.ContainerHeartbeatResponse:
        container = context.calling_container
        if not container.cancellations:
            container.cancel_event.clear()
            try:
                await asyncio.wait_for(container.cancel_event.wait(), HEARTBEAT_POLL_SECONDS)
            except TimeoutError:
                return api_pb2.ContainerHeartbeatResponse()
        pending, container.cancellations = container.cancellations, []
        event = api_pb2.CancelInputEvent(input_ids=[entry for entry, _ in pending], cancellation_reason=pending[0][1])
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=event)

    async def TaskResult(self, request: api_pb2.TaskResultRequest, context: Context) -> Empty:
        context.calling_container.result = request.result
        return Empty()

    async def ContainerStop(self, request: api_pb2.ContainerStopRequest, context: Context) -> Any:
        container = self.plane.scheduler.containers.get(request.task_id)
        if container is not None:
            if request.graceful:
                container.retiring = True
            else:
                self.plane.scheduler.stop(container, "preempted", self.plane.stop_grace)
        return api_pb2.ContainerStopResponse()

    async def TaskList(self, request: Any, context: Context) -> Any:
        tasks = [
            api_pb2.TaskStats(
                task_id=container.id,
                app_id=container.function.app.id,
                app_description=container.function.app.description,
                started_at=container.ready_at,
                enqueued_at=container.created_at,
            )
            for container in self.plane.scheduler.containers.values()
            if container.state != "done" and request.app_id in ("", container.function.app.id)
        ]
        return api_pb2.TaskListResponse(tasks=tasks)

    async def TaskGetInfo(self, request: Any, context: Context) -> Any:
        container = self.plane.scheduler.containers[request.task_id]
        info = api_pb2.TaskInfo(
            id=container.id,
            started_at=container.ready_at,
            finished_at=container.finished_at,
            enqueued_at=container.created_at,
        )
        return api_pb2.TaskGetInfoResponse(app_id=container.function.app.id, info=info)
