"""Records of the control plane's state.

Assumptions about Modal: an id is a two-letter prefix, a dash, and letters or digits without further meaning.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import attrs
from modal_proto import api_pb2

if TYPE_CHECKING:
    from .container import ContainerProcess

Status = api_pb2.GenericResult.GenericStatus
SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
TERMINATED = api_pb2.GenericResult.GENERIC_STATUS_TERMINATED
TIMEOUT = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(11)}"


@attrs.define(eq=False)
class App:
    """An app."""

    description: str
    state: int
    environment: str = "main"
    tags: dict[str, str] = attrs.field(factory=dict)
    id: str = attrs.field(factory=lambda: new_id("ap"))
    created_at: float = attrs.field(factory=time.time)
    stopped_at: float = 0.0
    name: str = ""
    last_heartbeat: float = attrs.field(factory=time.monotonic)
    connected: bool = True
    disconnect: api_pb2.AppClientDisconnectRequest | None = None
    function_ids: dict[str, str] = attrs.field(factory=dict)

    @property
    def detached(self) -> bool:
        return self.state in (api_pb2.APP_STATE_DETACHED, api_pb2.APP_STATE_DETACHED_DISCONNECTED)

    @property
    def stopped(self) -> bool:
        return self.state in (api_pb2.APP_STATE_STOPPING, api_pb2.APP_STATE_STOPPED)


@attrs.define(eq=False)
class Function:
    """A function of an app."""

    app: App
    name: str
    id: str = attrs.field(factory=lambda: new_id("fu"))
    definition: api_pb2.Function = attrs.field(factory=api_pb2.Function)
    data: api_pb2.FunctionData = attrs.field(factory=api_pb2.FunctionData)
    metadata: api_pb2.FunctionHandleMetadata = attrs.field(factory=api_pb2.FunctionHandleMetadata)
    queue: list[Input] = attrs.field(factory=list)
    containers: list[Container] = attrs.field(factory=list)
    startup_failures: int = 0

    @property
    def cluster_size(self) -> int:
        return int(self.definition._experimental_group_size)

    @property
    def gpus(self) -> list[tuple[str, int]]:
        """The GPU request in its order of preference."""
        ranked = [entry.function for entry in self.data.ranked_functions] or [self.definition]
        configs = [function.resources.gpu_config for function in ranked]
        return [(config.gpu_type, config.count) for config in configs if config.count]


@attrs.define(eq=False)
class FunctionCall:
    """A call of a function."""

    function: Function
    invocation: int
    type: int
    id: str = attrs.field(factory=lambda: new_id("fc"))
    created_at: float = attrs.field(factory=time.time)
    inputs: list[Input] = attrs.field(factory=list)
    finished: list[Input] = attrs.field(factory=list)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def client_retries(self) -> bool:
        """Whether the client retries the call. Blocking calls are retried by the client, spawned ones by the server."""
        return self.invocation in (
            api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC_LEGACY,
        )

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


@attrs.define(eq=False)
class Input:
    """One input of a call."""

    call: FunctionCall
    index: int
    payload: api_pb2.FunctionInput
    id: str = attrs.field(factory=lambda: new_id("in"))
    state: str = "pending"  # pending, running, done
    retry_count: int = 0
    crashes: int = 0
    cancelled: bool = False
    started_at: float = 0.0
    output: api_pb2.FunctionGetOutputsItem | None = None
    timer: asyncio.TimerHandle | None = None
    containers: list[Container] = attrs.field(factory=list)  # containers that ran the input, oldest first
    gang: Any = None

    @property
    def status(self) -> int:
        return self.output.result.status if self.output else 0


@attrs.define(eq=False)
class Container:
    """A container of a function."""

    function: Function
    id: str = attrs.field(factory=lambda: new_id("ta"))
    state: str = "starting"  # starting, idle, busy, done
    running: list[Input] = attrs.field(factory=list)
    waiter: asyncio.Future[Input | None] | None = None
    retiring: bool = False
    stop_cause: str = ""  # why it is being stopped: preempted, app, cancelled, timeout, gang, idle
    cancellations: list[tuple[str, str]] = attrs.field(factory=list)  # input id, reason
    cancel_event: asyncio.Event = attrs.field(factory=asyncio.Event)
    process: ContainerProcess | None = None
    done: asyncio.Event = attrs.field(factory=asyncio.Event)
    created_at: float = attrs.field(factory=time.time)
    started_at: float = 0.0  # when its process was started, from which on it is charged
    ready_at: float = 0.0
    finished_at: float = 0.0
    result: api_pb2.GenericResult | None = None
    returncode: int | None = None
    timers: list[asyncio.TimerHandle] = attrs.field(factory=list)
    address: str = "127.0.0.1"
    gang: Any = None
    replace_at: float = 0.0  # event loop time at which a preempted container is replaced

    @property
    def seconds(self) -> float:
        """Seconds from the start of the container's process to its end, or until now."""
        return (self.finished_at or time.time()) - self.started_at if self.started_at else 0.0

    @property
    def pid(self) -> int | None:
        """Pid of the entrypoint on this machine; None unless it runs."""
        return self.process.entrypoint_pid() if self.process else None


@attrs.frozen
class Call:
    """One RPC that arrived. `container` is the task id of the caller, or None if a client sent it."""

    name: str
    request: Any
    time: float
    container: str | None = None
    metadata: dict[str, str] = attrs.field(factory=dict, repr=False)
