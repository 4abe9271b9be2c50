"""The network of a local run on several nodes: an address for each rank, and direct connections between them.

Rank 0 remains in this machine's own network, so that the command can reach the internet. Each other rank has a network
namespace of its own. All of them are connected to a bridge in one more namespace, the hub. The hub has no processes and
no name: it exists as long as a descriptor of it is open, so there is nothing to clean up. When the last descriptor is
closed, the kernel removes the hub, the bridge, and each pair of interfaces that has one end in the hub, including this
machine's end.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from attrs import define

from skyrl_modal.backends.local.sandbox import RETRY_DELAYS, Sandbox, mentions_temporary_error
from skyrl_modal.errors import BackendUnavailable

#: With the value "host", the nodes of a run share this machine's own network, for tasks that need the internet.
NETWORK_VARIABLE = "SKYRL_MODAL_LOCAL_NETWORK"
#: Reserved for benchmarks by RFC 2544, so they are rarely in use. The second half is tried first, since local proxies
#: such as Clash use addresses of 198.18.0.0/16.
_RANGES = ("198.19.0.0/16", "198.18.0.0/16")
#: A route with a shorter prefix leads to the internet (a VPN's 0.0.0.0/1). It is no network that is in use, and the
#: more specific route of this network takes precedence over it.
_MIN_PREFIX_LENGTH = 8
#: Every rank's address is in a /24 network: the first address is rank 0's, and the last is for broadcasts.
_MAX_NODES = 254
_CONNECT_SCRIPT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def shared_network_reason(sandbox: Sandbox | None) -> str | None:
    """Return why the ranks share this machine's network; None if each has an address of its own."""
    if os.environ.get(NETWORK_VARIABLE) == "host":
        return f"${NETWORK_VARIABLE} is host"
    return "there are no namespaces" if sandbox is None else unavailable_reason()


@functools.cache
def unavailable_reason() -> str | None:
    """Return why this process cannot create a network here, which is found by creating one; None if it can.

    Raises:
        BackendUnavailable: It cannot be decided now, since this machine lacks processes, memory or descriptors. The
            next call tries again.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    if os.geteuid() != 0:
        return "only root may add an interface to this machine's network"
    if missing := [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    for delay in (*RETRY_DELAYS, None):
        try:
            _probe()
        except OSError as error:
            reason = "; ".join(str(error).splitlines())
            if not mentions_temporary_error(reason):
                return reason
            if delay is None:
                text = f"the network of the nodes could not be tried: {reason}. The reason may be temporary"
                raise BackendUnavailable("local", f"{text}; start the run again") from error
            time.sleep(delay)  # there is no event for it
        else:
            break
    return None


@define(eq=False)
class ClusterNetwork:
    """A network that exists as long as any process has its descriptor open.

    Attributes:
        addresses: The IPv4 address of each rank.
        descriptor: The descriptor that keeps the network. Child processes do not inherit it unless it is passed to
            them. -1 after ``close``.
    """

    addresses: tuple[str, ...]
    descriptor: int

    @classmethod
    def create(cls, nodes: int) -> ClusterNetwork:
        """Create the hub, and connect this machine to it as rank 0. Takes some hundredths of a second.

        Raises:
            OSError: It failed, and everything that was created has been removed. The text is the message of the tool.
            ValueError: There are fewer addresses than nodes.
        """
        if not 1 <= nodes <= _MAX_NODES:
            raise ValueError(f"nodes must be 1 to {_MAX_NODES}, not {nodes}")
        with _namespace() as pid:
            hub = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            network = _connect_host(hub)
            _ip(["link add hub type bridge", "link set hub up", "link set v0 master hub up"], inside=hub)
        except BaseException:
            os.close(hub)
            raise
        return cls(tuple(str(network[rank + 1]) for rank in range(nodes)), hub)

    def connect(self, rank: int, pid: int) -> None:
        """Connect the network namespace of a process, in which the interface ``eth0`` then has the rank's address.

        The loopback interface of the namespace is not changed: the process that created it, such as bubblewrap, sets
        it up.

        Args:
            rank: 1 or higher.
            pid: A process that is already in its own namespace.

        Raises:
            OSError: It failed, or the process has no network namespace of its own.
            ValueError: There is no such rank, or it is rank 0.
        """
        if not 1 <= rank < len(self.addresses):
            raise ValueError(f"rank must be 1 to {len(self.addresses) - 1}, not {rank}")
        # Opened once, since another process may have the same pid later.
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net")):
                raise OSError(f"process {pid} has no network namespace of its own")
            pair = f"link add v{rank} type veth peer name eth0 netns /proc/self/fd/{namespace}"
            _ip([pair, f"link set v{rank} master hub up"], inside=self.descriptor, pass_fds=[namespace])
            _ip([f"address add {self.addresses[rank]}/24 dev eth0", "link set eth0 up"], inside=namespace)
        finally:
            os.close(namespace)

    def close(self) -> None:
        """Close this process's descriptor. The network is removed when no other process has it open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Return the id of a process in a new network namespace. It exits with the ``with`` block, or with this process."""
    # It prints a line when it is in its namespace, and exits when its input is closed.
    command, pipe = ["unshare", "--net", "sh", "-c", "echo; read line"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        if process.stdout is not None and process.stderr is not None and not process.stdout.readline():
            raise OSError(process.stderr.read().strip())
        yield process.pid


def _connect_host(hub: int) -> ipaddress.IPv4Network:
    """Give this machine an address in an unused network, through an interface whose other end is in the hub.

    The interface's name reserves the network: the kernel allows each name once, as long as the interface exists.
    """
    for network in _unused_networks():
        address = network[1]
        name = f"skyrl-{address.packed[1]}-{address.packed[2]}"
        # udev does not change a hardware address that was chosen. Packets are lost while it changes one.
        own = f"{name} address 02:00:{address.packed.hex(':')}"
        try:
            _ip([f"link add {own} type veth peer name v0 netns /proc/self/fd/{hub}"], pass_fds=[hub])
        except OSError:
            if _has_interface(name):
                continue  # a run that started at the same moment uses this network
            raise
        _ip([f"address add {address}/24 dev {name}", f"link set {name} up"])
        return network
    raise OSError(f"no network is free in {' and '.join(_RANGES)}")


def _has_interface(name: str) -> bool:
    """Return whether the network namespace of this process has an interface of a name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _unused_networks() -> Iterator[ipaddress.IPv4Network]:
    """Return networks in which this machine has no address and to which it has no route, in random order."""
    used = [item["dst"] for item in json.loads(_run(["ip", "-json", "-4", "route", "show", "table", "all"]))]
    for interface in json.loads(_run(["ip", "-json", "-4", "address"])):
        used += [f"{item['local']}/{item['prefixlen']}" for item in interface.get("addr_info", ())]
    parsed = [ipaddress.IPv4Network(text, strict=False) for text in used if text != "default"]
    used_networks = [network for network in parsed if network.prefixlen >= _MIN_PREFIX_LENGTH]
    for text in _RANGES:
        networks = list(ipaddress.IPv4Network(text).subnets(new_prefix=24))
        random.shuffle(networks)
        yield from (network for network in networks if not any(network.overlaps(used) for used in used_networks))


def _ip(lines: Sequence[str], *, inside: int | None = None, pass_fds: Sequence[int] = ()) -> None:
    """Execute commands of ``ip`` until one fails.

    Args:
        lines: The commands.
        inside: The descriptor of the network namespace to execute them in; None for this process's own.
        pass_fds: Descriptors that the commands refer to.

    Raises:
        OSError: A command failed. The text is the message of ``ip``.
    """
    enter, passed = [], list(pass_fds)
    if inside is not None:
        enter, passed = ["nsenter", f"--net=/proc/self/fd/{inside}"], [*passed, inside]
    _run([*enter, "ip", "-batch", "-"], "\n".join(lines) + "\n", passed)


def _run(command: Sequence[str], text: str = "", pass_fds: Sequence[int] = ()) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, errors="replace", pass_fds=pass_fds, check=False
    )
    if done.returncode != 0:
        raise OSError(done.stderr.strip() or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def _probe() -> None:
    """Create a network with one more rank that connects to this machine, which a firewall may refuse.

    Raises:
        OSError: It failed.
    """
    network = ClusterNetwork.create(2)
    try:
        with _namespace() as pid, socket.create_server((network.addresses[0], 0)) as server:
            network.connect(1, pid)
            port = str(server.getsockname()[1])
            client = [sys.executable, "-I", "-S", "-c", _CONNECT_SCRIPT, network.addresses[0], port]
            try:
                _run(["nsenter", f"--net=/proc/{pid}/ns/net", *client])
            except OSError as error:
                reason = str(error).splitlines()[-1]
                raise OSError(f"this machine refuses connections from a private network: {reason}") from error
    finally:
        network.close()
