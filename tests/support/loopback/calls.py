"""Function calls with their inputs and outputs: the RPCs of `.remote`, `.spawn`, `.get` and `.cancel`.

Assumptions about Modal: outputs remain readable after the app has stopped. Failures of a blocking call are retried by
the client (FunctionRetryInputs), those of a spawned call by the server. A cancellation is sent to the container in the
reply to its heartbeat, and the container's TERMINATED output ends the input.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import FAILURE, SUCCESS, TERMINATED, TIMEOUT, FunctionCall, Input
from .rpc import Context, Service


class Calls(Service):
    """RPCs of clients about function calls."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.calls: dict[str, FunctionCall] = {}
        self.inputs: dict[str, Input] = {}

    def get(self, call_id: str) -> FunctionCall:
        if call_id not in self.calls:
            raise GRPCError(Status.NOT_FOUND, f"FunctionCall {call_id!r} not found.")
        return self.calls[call_id]

    def _put(self, call: FunctionCall, items: Any) -> list[api_pb2.FunctionPutInputsResponseItem]:
        put = []
        for item in items:
            entry = Input(call, item.idx, item.input)
            call.inputs.append(entry)
            self.inputs[entry.id] = entry
            self.plane.scheduler.enqueue(entry)
            put.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=entry.id, input_jwt=entry.id))
        return put

    async def FunctionMap(self, request: api_pb2.FunctionMapRequest, context: Context) -> api_pb2.FunctionMapResponse:
        function = self.plane.functions.get(request.function_id)
        if function.app.stopped:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App {function.app.id} is stopped.")
        call = FunctionCall(function, request.function_call_invocation_type, request.function_call_type)
        self.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            pipelined_inputs=self._put(call, request.pipelined_inputs),
            retry_policy=function.definition.retry_policy,
            function_call_jwt=call.id,
            sync_client_retries_enabled=True,
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(self, request: Any, context: Context) -> Any:
        call = self.get(request.function_call_id)
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(call, request.inputs))

    async def FunctionFinishInputs(self, request: Any, context: Context) -> Empty:
        return Empty()

    async def FunctionRetryInputs(self, request: Any, context: Context) -> Any:
        for item in request.inputs:
            entry = self.inputs[item.input_jwt]
            entry.retry_count += 1
            entry.call.finished.remove(entry)
            self.plane.scheduler.enqueue(entry)
        return api_pb2.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest, context: Context
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self.get(request.function_call_id)
        deadline = time.monotonic() + request.timeout
        while True:
            changed = call.changed
            after = int(request.last_entry_id.partition("-")[0] or 0)
            if request.HasField("start_idx"):
                wanted = range(request.start_idx, request.end_idx + 1)
                ready = [entry for entry in call.finished if entry.index in wanted]
            else:
                ready = call.finished[after:][: request.max_values or None]
            left = deadline - time.monotonic()
            if ready or left <= 0:
                return api_pb2.FunctionGetOutputsResponse(
                    outputs=[entry.output for entry in ready],
                    idxs=[entry.index for entry in ready],
                    last_entry_id=f"{after + len(ready)}-0",
                    num_unfinished_inputs=sum(entry.state != "done" for entry in call.inputs),
                )
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    async def FunctionCallFromId(self, request: Any, context: Context) -> Any:
        call = self.get(request.function_call_id)
        metadata = api_pb2.FunctionCallHandleMetadata(app_id=call.function.app.id, function_id=call.function.id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id, num_inputs=len(call.inputs), metadata=metadata
        )

    async def FunctionCallGetInfo(self, request: Any, context: Context) -> Any:
        call = self.get(request.function_call_id)

        def count(*statuses: int) -> api_pb2.InputCategoryInfo:
            return api_pb2.InputCategoryInfo(total=sum(entry.status in statuses for entry in call.finished))

        failed = [
            api_pb2.GenericResult.GENERIC_STATUS_INIT_FAILURE,
            api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
        ]
        info = api_pb2.FunctionCallInfo(
            function_call_id=call.id,
            created_at=call.created_at,
            pending_inputs=api_pb2.InputCategoryInfo(total=len(call.inputs) - len(call.finished)),
            succeeded_inputs=count(SUCCESS),
            failed_inputs=count(FAILURE, *failed),
            timeout_inputs=count(TIMEOUT),
            cancelled_inputs=count(TERMINATED),
            total_inputs=len(call.inputs),
        )
        return api_pb2.FunctionCallGetInfoResponse(info=info)

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest, context: Context) -> Empty:
        call = self.get(request.function_call_id)
        for entry in call.inputs:
            self.plane.scheduler.cancel(entry, terminate=request.terminate_containers)
        return Empty()
