"""The network of a local run on several nodes: an address for each rank, and direct ways between them.

Rank 0 stays in this machine's own network, so that the command keeps its way to the internet; each other rank has a
network namespace of its own. They meet at a bridge in one more namespace, the hub, which no process is in and no file
names: an open descriptor holds it. So there is nothing to clean up. With the last descriptor the kernel removes the
hub, the bridge, and each pair of interfaces with an end in it: what this machine had of them as well.
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
from collections.abc import Iterator, Sequence

from attrs import define

#: Set aside by RFC 2544 for benchmarks, so hardly ever a network that somebody uses. The second half comes first, since
#: local proxies such as Clash give out addresses of 198.18.0.0/16.
_RANGES = ("198.19.0.0/16", "198.18.0.0/16")
#: A shorter prefix is a way to the internet (a VPN's 0.0.0.0/1): no network of its own, and ours comes before it.
_SHORTEST_PREFIX = 8
#: Every rank's address is in a /24, whose first address is rank 0's and whose last is for broadcasts.
_MOST_NODES = 254
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


@functools.cache
def cannot() -> str | None:
    """Why this process cannot make such a network here, seen by making one; None where it can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    if os.geteuid() != 0:
        return "only root may add an interface to this machine's network"
    if missing := [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    try:
        _try()
    except OSError as error:
        return "; ".join(str(error).splitlines())
    return None


@define(eq=False)
class ClusterNetwork:
    """A network that lives as long as somebody holds its descriptor open.

    Attributes:
        addresses: The IPv4 address of each rank.
        descriptor: It holds the network; not inherited by child processes unless it is passed on. -1 once closed.
    """

    addresses: tuple[str, ...]
    descriptor: int

    @classmethod
    def create(cls, nodes: int) -> ClusterNetwork:
        """Make the hub and connect this machine to it as rank 0. Blocks for some hundredths of a second.

        Raises:
            OSError: It failed; the text has the tool's words. Nothing is left.
            ValueError: There are not that many addresses.
        """
        if not 1 <= nodes <= _MOST_NODES:
            raise ValueError(f"nodes must be 1 to {_MOST_NODES}, not {nodes}")
        with _namespace() as pid:
            hub = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            network = _connect_host(hub)
            _ip(["link add hub type bridge", "link set hub up", "link set v0 master hub up"], inside=hub)
        except BaseException:
            os.close(hub)
            raise
        return cls(tuple(str(network[rank + 1]) for rank in range(nodes)), hub)

    def join(self, rank: int, pid: int) -> None:
        """Connect the network namespace of a process, which has the rank's address as ``eth0`` then.

        Its loopback interface is left to whoever made the namespace, such as bubblewrap.

        Args:
            rank: 1 or higher.
            pid: A process that is in its own namespace already.

        Raises:
            OSError: It failed, or the process has no network namespace of its own.
            ValueError: There is no such rank, or it is this machine's.
        """
        if not 1 <= rank < len(self.addresses):
            raise ValueError(f"rank must be 1 to {len(self.addresses) - 1}, not {rank}")
        # Opened once: what has the pid later is another process.
        own = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if os.path.samestat(os.fstat(own), os.stat("/proc/self/ns/net")):
                raise OSError(f"process {pid} has no network namespace of its own")
            pair = f"link add v{rank} type veth peer name eth0 netns /proc/self/fd/{own}"
            _ip([pair, f"link set v{rank} master hub up"], inside=self.descriptor, pass_fds=[own])
            _ip([f"address add {self.addresses[rank]}/24 dev eth0", "link set eth0 up"], inside=own)
        finally:
            os.close(own)

    def close(self) -> None:
        """Close this process's descriptor. The network stays for whoever else holds it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """The id of a process in a new network namespace; it ends with the ``with``, or with this process."""
    # It says a line once it is in its namespace; when its input is closed, it ends.
    command, pipe = ["unshare", "--net", "sh", "-c", "echo; read line"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        if process.stdout is not None and process.stderr is not None and not process.stdout.readline():
            raise OSError(process.stderr.read().strip())
        yield process.pid


def _connect_host(hub: int) -> ipaddress.IPv4Network:
    """Give this machine an address on a network that nobody uses, by an interface with its other end in the hub.

    The interface's name is what claims the network: the kernel allows it once, for as long as the interface is there.
    """
    for network in _free_networks():
        address = network[1]
        name = f"skyrl-{address.packed[1]}-{address.packed[2]}"
        # A hardware address that was chosen is one that udev leaves alone; packets get lost while it changes one.
        own = f"{name} address 02:00:{address.packed.hex(':')}"
        pair = f"link add {own} type veth peer name v0 netns /proc/self/fd/{hub}"
        with contextlib.suppress(FileExistsError):  # a run that started at the same moment has it
            _ip([pair, f"address add {address}/24 dev {name}", f"link set {name} up"], pass_fds=[hub])
            return network
    raise OSError(f"no network is free in {' and '.join(_RANGES)}")


def _free_networks() -> Iterator[ipaddress.IPv4Network]:
    """Networks that this machine has no address in and no route to, in random order."""
    used = [item["dst"] for item in json.loads(_run(["ip", "-json", "-4", "route", "show", "table", "all"]))]
    for interface in json.loads(_run(["ip", "-json", "-4", "address"])):
        used += [f"{item['local']}/{item['prefixlen']}" for item in interface.get("addr_info", ())]
    parsed = [ipaddress.IPv4Network(text, strict=False) for text in used if text != "default"]
    taken = [network for network in parsed if network.prefixlen >= _SHORTEST_PREFIX]
    for text in _RANGES:
        networks = list(ipaddress.IPv4Network(text).subnets(new_prefix=24))
        random.shuffle(networks)
        yield from (network for network in networks if not any(network.overlaps(other) for other in taken))


def _ip(lines: Sequence[str], *, inside: int | None = None, pass_fds: Sequence[int] = ()) -> None:
    """Have ``ip`` do these things, in the namespace of a descriptor or in this machine's own, until one fails."""
    enter, passed = [], list(pass_fds)
    if inside is not None:
        enter, passed = ["nsenter", f"--net=/proc/self/fd/{inside}"], [*passed, inside]
    _run([*enter, "ip", "-batch", "-"], "\n".join(lines) + "\n", passed)


def _run(command: Sequence[str], text: str = "", pass_fds: Sequence[int] = ()) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, pass_fds=pass_fds, check=False)
    if done.returncode != 0:
        words = done.stderr.strip() or f"{command[0]}: exit code {done.returncode}"
        raise (FileExistsError if "File exists" in words else OSError)(words)
    return done.stdout


def _try() -> None:
    """Make a network with one more rank, which calls this machine: a firewall may have something against it."""
    network = ClusterNetwork.create(2)
    try:
        with _namespace() as pid, socket.create_server((network.addresses[0], 0)) as server:
            network.join(1, pid)
            call = [sys.executable, "-I", "-S", "-c", _CONNECT, network.addresses[0], str(server.getsockname()[1])]
            try:
                _run(["nsenter", f"--net=/proc/{pid}/ns/net", *call])
            except OSError as error:
                words = str(error).splitlines()[-1]
                raise OSError(f"this machine takes no connections from a private network: {words}") from error
    finally:
        network.close()
