"""Dispatch of RPCs: each is recorded, its token checked, faults applied, and its method called.

Assumptions about Modal: an RPC that is repeated with the same `x-idempotency-key` is answered, but not executed twice.
A wrong token is refused with UNAUTHENTICATED. Containers need no token: the worker's socket identifies them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from modal_proto.api_grpc import ModalClientBase

from . import texts
from .records import Call, Container

if TYPE_CHECKING:
    from .plane import ControlPlane

# Executed once for each idempotency key.
ONCE = {"AppCreate", "FunctionMap", "FunctionPutInputs", "FunctionRetryInputs", "FunctionPutOutputs", "BlobCreate"}
# Repeated in the background: recorded, but left out of `LoopbackModal.names` by default.
POLLS = {"AppHeartbeat", "ContainerHeartbeat", "FunctionCallGetInfo", "DictGet", "DictUpdate"}

# Refused by a workspace that has exceeded its spend limit; the results of calls too, as users have recorded.
WORK = {"AppCreate", "FunctionCreate", "FunctionMap", "FunctionPutInputs", "FunctionGetOutputs", "FunctionRetryInputs"}
# Answered by a workspace that is disabled.
ALWAYS_ALLOWED = {"ClientHello", "AuthTokenGet", "EnvironmentGetOrCreate"}


class Service:
    """A group of RPCs. A method that has the name of an RPC answers it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane


@attrs.frozen
class Context:
    """The caller of an RPC."""

    container: Container | None
    metadata: dict[str, str]

    @property
    def calling_container(self) -> Container:
        """The container that made the RPC.

        Raises:
            GRPCError: A client made the RPC.
        """
        if self.container is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "This can only be called from within a container.")
        return self.container


async def _absent(*_: Any) -> None:
    raise NotImplementedError


@functools.cache
def _stub_mapping() -> dict[str, Handler]:
    methods = dict.fromkeys(ModalClientBase.__abstractmethods__, _absent)
    return type("Stub", (ModalClientBase,), methods)().__mapping__()


class Router:
    """Handlers for grpclib's servers: one for clients, and one for the socket of each container."""

    def __init__(self, plane: ControlPlane, services: list[Service]) -> None:
        self.plane = plane
        self.services = services
        self.answers: dict[tuple[str, str], Any] = {}

    def handler(self, container: Container | None) -> _Mapping:
        mapping = {
            path: Handler(
                partial(self._dispatch, path.rpartition("/")[2], handler, container),
                handler.cardinality,
                handler.request_type,
                handler.reply_type,
            )
            for path, handler in _stub_mapping().items()
        }
        return _Mapping(mapping)

    def method(self, name: str) -> Any:
        for service in self.services:
            found = getattr(service, name, None)
            if found is not None:
                return found
        return None

    async def _dispatch(self, name: str, handler: Handler, container: Container | None, stream: Any) -> None:
        request = await stream.recv_message()
        metadata = {key: value for key, value in stream.metadata.items() if isinstance(value, str)}
        self.plane.record(Call(name, request, time.time(), container.id if container else None, metadata))
        if container is None:
            self._check_token(metadata)
            self._check_spend_limit(name)
        faults = self.plane.faults
        await faults.before(name, container)
        method = self.method(name)
        if method is None:
            self.plane.unimplemented.append(name)
            raise GRPCError(Status.UNIMPLEMENTED, f"The loopback control plane has no {name}.")
        context = Context(container, metadata)
        key = (name, metadata.get("x-idempotency-key", ""))
        task = asyncio.current_task()
        assert task is not None
        with faults.in_flight(name, container, task) as drop:
            try:
                if handler.cardinality is Cardinality.UNARY_STREAM:
                    async for response in method(request, context):
                        await stream.send_message(response)
                    return
                response = self.answers.get(key) if name in ONCE and key[1] else None
                if response is None:
                    response = await method(request, context)
                    if name in ONCE and key[1]:
                        self.answers[key] = response
                faults.after(name, container)
            except asyncio.CancelledError:
                if not drop.requested:
                    raise
                task.uncancel()
                raise GRPCError(Status.UNAVAILABLE, "Connection lost (injected fault).") from None
        with contextlib.suppress(StreamTerminatedError):
            await stream.send_message(response)

    def _check_spend_limit(self, name: str) -> None:
        limit = self.plane.mode.spend_limit
        if limit == "exceeded" and name in WORK:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, texts.SPEND_LIMIT)
        if limit == "disabled" and name not in ALWAYS_ALLOWED:
            raise GRPCError(Status.FAILED_PRECONDITION, texts.DISABLED)

    def _check_token(self, metadata: dict[str, str]) -> None:
        token = (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret"))
        if token != self.plane.token or self.plane.faults.token_revoked:
            raise GRPCError(
                Status.UNAUTHENTICATED, "Token validation failed. Could not authenticate the client with this token."
            )


class _Mapping:
    def __init__(self, mapping: dict[str, Handler]) -> None:
        self._mapping = mapping

    def __mapping__(self) -> dict[str, Handler]:
        return self._mapping
