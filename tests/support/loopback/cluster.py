"""Clusters: N containers that run the same input.

Assumptions about Modal: either all containers of a cluster start, or none. TaskClusterHello is answered when every
member has sent it. Every rank receives the input; the output of rank 0 is the output of the call. A failure output of
any rank, or the death of a container, ends the attempt for all ranks, and fails the call unless a retry policy starts
it again (see `Mode.cluster_restarts`). After rank 0's output, the other ranks may use the grace period of a stop to
exit by themselves. A retry, or a preemption, starts all ranks again. For a cluster of one, the list of addresses is
empty.

If the system does not allow a network bridge, the members share the machine's network, and rank N gets the address
127.0.0.(N + 2).
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import attrs
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import network
from .records import FAILURE, SUCCESS, Container, Function, Input, new_id
from .rpc import Context, Service

LONG_POLL_SECONDS = 20.0


@attrs.define(eq=False)
class Gang:
    """The containers of one attempt to run an input on a cluster (gang scheduling: all of them, or none)."""

    function: Function
    entry: Input
    id: str = attrs.field(factory=lambda: new_id("cu"))
    members: list[Container] = attrs.field(factory=list)
    addresses: dict[str, str] = attrs.field(factory=dict)  # by container id, as sent in TaskClusterHello
    complete: asyncio.Event = attrs.field(factory=asyncio.Event)
    served: set[str] = attrs.field(factory=set)
    alive: int = 0
    over: asyncio.Event = attrs.field(factory=asyncio.Event)  # the input has a result
    ending: asyncio.Event = attrs.field(factory=asyncio.Event)  # the input has a result, or a member has exited
    stop_cause: str = ""
    code: int = 0
    result: api_pb2.GenericResult | None = None
    started_at: float = attrs.field(factory=time.time)
    bridge: network.Bridge | None = None
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)


class Clusters(Service):
    """Gangs of containers, and RPCs about clusters."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.gangs: dict[str, Gang] = {}
        self.own_addresses = network.bridges_possible()

    def dispatch(self, function: Function) -> None:
        while function.queue:
            entry = function.queue.pop(0)
            gang = Gang(function, entry)
            self.gangs[gang.id] = gang
            entry.gang = gang
            gang.members = [Container(function, gang=gang) for _ in range(function.cluster_size)]
            gang.alive = len(gang.members)
            for member in gang.members:
                self.plane.scheduler.launch(member)

    # -- containers of a cluster -------------------------------------------------------------------------------------

    async def prepare(self, container: Container, process: Any) -> None:
        """Assign an address to a member of a cluster."""
        gang: Gang | None = container.gang
        if gang is None:
            return
        rank = gang.members.index(container)
        if not self.own_addresses:
            container.address = f"127.0.0.{rank + 2}"
            process.private_network = False
            return
        async with gang.lock:
            if gang.bridge is None:
                gang.bridge = await asyncio.to_thread(network.Bridge.create)
        bridge = gang.bridge
        container.address = bridge.ipv4(rank)
        process.names = {"modal": bridge.ipv4(rank), "i6pn.modal.local": bridge.ipv6(rank)}
        process.prefix = bridge.enter
        process.connect = lambda pid: bridge.join(rank, pid)

    async def next_input(self, container: Container) -> Input | None:
        gang: Gang = container.gang
        if container.running:
            return container.running[0]
        if gang.over.is_set() or container.retiring:
            return None
        if container.id not in gang.served:
            gang.served.add(container.id)
            return gang.entry
        await asyncio.wait_for(gang.ending.wait(), LONG_POLL_SECONDS)
        return None

    def put_output(self, container: Container, entry: Input, item: Any) -> None:
        gang: Gang = container.gang
        if gang.over.is_set() or entry.state != "running" or entry.retry_count != item.retry_count:
            return
        if entry.gang is not gang:
            return  # a replacement of this cluster runs the input
        if item.result.status == SUCCESS and container is not gang.members[0]:
            return
        self.settle(gang)
        self.plane.scheduler.finish(entry, item.result.status, item=item)
        for member in gang.members:
            if member is not container and member.state != "done":
                if item.result.status != SUCCESS and not entry.cancelled and member.process:
                    member.process.signal(signal.SIGINT)
                self.plane.scheduler.kill_later(member, self.plane.stop_grace, "gang")

    @staticmethod
    def settle(gang: Gang) -> None:
        """Record that the input has a result, and retire the members."""
        gang.over.set()
        gang.ending.set()
        for member in gang.members:
            member.retiring = True

    def ended(self, container: Container, code: int) -> None:
        gang: Gang = container.gang
        gang.alive -= 1
        gang.ending.set()
        scheduler, entry = self.plane.scheduler, gang.entry
        if not gang.over.is_set() and not gang.stop_cause:
            gang.stop_cause, gang.code, gang.result = container.stop_cause or "crash", code, container.result
            for member in gang.members:
                scheduler.stop(member, gang.stop_cause, self.plane.stop_grace)
        if gang.alive:
            return
        if gang.bridge is not None:
            gang.bridge.close()
        if gang.over.is_set() or entry.gang is not gang or entry.state == "done":
            return
        preempted = next((member for member in gang.members if member.replace_at), container)
        if gang.stop_cause != "preempted" or not preempted.replace_at:
            self.settle(gang)
        if gang.result is not None and entry.crashes >= self.plane.crashes_allowed:
            entry.retry_count = 1 << 20
            scheduler.finish(entry, FAILURE, item=api_pb2.FunctionPutOutputsItem(result=gang.result))
        else:
            scheduler.handle_lost_container(entry, gang.stop_cause, gang.code, preempted)

    # -- RPCs --------------------------------------------------------------------------------------------------------

    async def TaskClusterHello(
        self, request: api_pb2.TaskClusterHelloRequest, context: Context
    ) -> api_pb2.TaskClusterHelloResponse:
        container = context.calling_container
        gang: Gang = container.gang
        gang.addresses[container.id] = request.container_ip
        if len(gang.addresses) == len(gang.members):
            gang.complete.set()
        await gang.complete.wait()
        several = gang.members if len(gang.members) > 1 else []
        return api_pb2.TaskClusterHelloResponse(
            cluster_id=gang.id,
            cluster_rank=gang.members.index(container),
            container_ips=[gang.addresses[member.id] for member in several],
            container_ipv4_ips=[member.address for member in several],
        )

    async def ClusterGet(self, request: api_pb2.ClusterGetRequest, context: Context) -> api_pb2.ClusterGetResponse:
        gang = self.gangs.get(request.cluster_id)
        if gang is None:
            raise GRPCError(Status.NOT_FOUND, f"Cluster {request.cluster_id!r} not found.")
        stats = api_pb2.ClusterStats(
            app_id=gang.function.app.id,
            task_ids=[member.id for member in gang.members],
            cluster_id=gang.id,
            started_at=gang.started_at,
        )
        return api_pb2.ClusterGetResponse(cluster=stats)

    async def close(self) -> None:
        """Close the remaining bridges."""
        for gang in self.gangs.values():
            if gang.bridge is not None:
                gang.bridge.close()
