"""The network of a local run on several nodes, in real namespaces: which ranks can connect, and its removal."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from attrs import define

from skyrl_modal.backends.local import network as local_network
from skyrl_modal.backends.local.network import ClusterNetwork, unavailable_reason
from skyrl_modal.backends.local.sandbox import find_sandbox
from skyrl_modal.errors import BackendUnavailable

#: The netlink group that reports changes of interfaces (rtnetlink(7)). The socket module has no constant for it.
RTMGRP_LINK = 1
#: Prints its port, sends its name to each client, and connects to the addresses that it reads from its input.
RANK_SCRIPT = """
import socket, sys, threading
server = socket.create_server(("0.0.0.0", 0))
def serve():
    while True:
        with server.accept()[0] as caller:
            caller.sendall(sys.argv[1].encode())
threading.Thread(target=serve, daemon=True).start()
print(server.getsockname()[1], flush=True)
for line in sys.stdin:
    address, port = line.split()
    try:
        with socket.create_connection((address, int(port)), 30) as connection:
            print(connection.recv(100).decode(), connection.getsockname()[0], flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
#: Creates a network, prints its addresses, and keeps it until its input is closed.
HOLDER_SCRIPT = """
import sys
from skyrl_modal.backends.local.network import ClusterNetwork
network = ClusterNetwork.create(2)
print(*network.addresses, flush=True)
sys.stdin.read()
"""


@define(eq=False)
class Rank:
    """A process that is a TCP server and client, and the pid of a process in its namespaces."""

    process: subprocess.Popen[str]
    pid: int
    port: int

    def connect(self, address: str, port: int) -> str:
        """Connect to a server. Return its name and this rank's own address, or the name of the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{address} {port}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def started(name: str, *wrapper: str, info: Path | None = None) -> Iterator[Rank]:
    """Start a rank through a wrapper program. It exits when its input is closed."""
    command = [*wrapper, sys.executable, "-I", "-S", "-c", RANK_SCRIPT, name]
    with contextlib.ExitStack() as stack:
        passed = []
        if info is not None:
            file = stack.enter_context(open(info, "wb"))
            command[len(wrapper) : len(wrapper)] = ["--info-fd", str(file.fileno())]
            passed.append(file.fileno())
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=passed)
        )
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Rank(process, json.loads(info.read_text())["child-pid"] if info else process.pid, port)


def bubblewrap(name: str, folder: Path) -> contextlib.AbstractContextManager[Rank]:
    """Start a rank as in a run: in a bubblewrap, which reports its pid."""
    sandbox = find_sandbox(folder).sandbox
    if sandbox is None:
        pytest.skip("no bubblewrap works here")
    options = ["--dev-bind", "/", "/", "--unshare-pid", "--as-pid-1", "--proc", "/proc", "--unshare-net"]
    return started(name, sandbox.binary, *sandbox.options, *options, info=folder / f"{name}.json")


def unshare(name: str, folder: Path) -> contextlib.AbstractContextManager[Rank]:
    """Start a rank in a network namespace only."""
    return started(name, "unshare", "--net")


@pytest.fixture(autouse=True)
def _require_networks() -> None:
    if (reason := unavailable_reason()) is not None:
        pytest.skip(f"private networks are not available: {reason}")


@pytest.fixture
def create() -> Iterator[Callable[[int], ClusterNetwork]]:
    """Return a function that creates networks, which are closed after the test and must not exist then."""
    networks: list[ClusterNetwork] = []

    def make(nodes: int) -> ClusterNetwork:
        networks.append(ClusterNetwork.create(nodes))
        return networks[-1]

    yield make
    for network in networks:
        network.close()
        wait_until_removed(network.addresses[0])


def interface(address: str) -> str | None:
    """Return the name of this machine's interface that has the address."""
    listed = subprocess.run(["ip", "-json", "-4", "address"], check=True, capture_output=True, text=True)
    for link in json.loads(listed.stdout):
        if any(item["local"] == address for item in link["addr_info"]):
            return str(link["ifname"])
    return None


def expected_interface(address: str) -> str:
    """Return the name that the interface with the address of rank 0 has."""
    return "skyrl-{}-{}".format(*address.split(".")[1:3])


def wait_until_removed(address: str) -> None:
    """Wait for the kernel to remove the interface of a network. It reports each change on a netlink socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, RTMGRP_LINK))
        changes.settimeout(60)
        while expected_interface(address) in interfaces():
            changes.recv(65536)


def interfaces(*wrapper: str) -> set[str]:
    """Return the names of the interfaces, in the network namespace that a wrapper program enters."""
    listed = subprocess.run([*wrapper, "ip", "-json", "link"], check=True, capture_output=True, text=True)
    return {link["ifname"] for link in json.loads(listed.stdout)}


def open_files() -> set[str]:
    """Return the numbers of this process's open descriptors."""
    return {entry for entry in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{entry}")}


@pytest.mark.parametrize("isolated", [bubblewrap, unshare])
def test_every_rank_can_connect_to_every_other_rank(
    isolated: Callable[[str, Path], contextlib.AbstractContextManager[Rank]],
    create: Callable[[int], ClusterNetwork],
    tmp_path: Path,
) -> None:
    """Each rank can connect to each other rank, and the server sees the client's own address."""
    with started("0") as head, isolated("1", tmp_path) as first, isolated("2", tmp_path) as second:
        network = create(3)
        network.connect(1, first.pid)
        network.connect(2, second.pid)
        ranks = [head, first, second]

        pairs = [(client, server) for client in range(3) for server in range(3) if client != server]
        answers = [ranks[client].connect(network.addresses[server], ranks[server].port) for client, server in pairs]

    assert answers == [f"{server} {network.addresses[client]}" for client, server in pairs]


def test_ranks_reach_only_their_own_network(create: Callable[[int], ClusterNetwork], tmp_path: Path) -> None:
    """A rank other than 0 can connect to the ranks of its own run, and to nothing else."""
    with started("0") as head, unshare("1", tmp_path) as first, unshare("other", tmp_path) as foreign:
        network, other = create(2), create(2)
        network.connect(1, first.pid)
        other.connect(1, foreign.pid)

        assert first.connect(network.addresses[0], head.port) == f"0 {network.addresses[1]}"
        assert first.connect(other.addresses[0], head.port) == "OSError", "Network is unreachable"
        assert first.connect(other.addresses[1], foreign.port) == "OSError"


def test_networks_created_at_the_same_moment_differ(
    create: Callable[[int], ClusterNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that are created at the same moment differ, although each attempt begins with the same one."""
    monkeypatch.setattr(local_network.random, "shuffle", lambda items: items.sort())
    start, networks = threading.Barrier(4), []

    def make() -> None:
        start.wait()
        networks.append(create(2))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({IPv4Network(f"{network.addresses[0]}/24", strict=False) for network in networks}) == 4
    assert all(interface(network.addresses[0]) == expected_interface(network.addresses[0]) for network in networks)


@pytest.mark.parametrize("killed", [True, False])
def test_network_is_removed_with_its_last_descriptor(killed: bool, tmp_path: Path) -> None:
    """A network is removed when the process that created it exits or is killed, also while a rank still runs."""
    command = [sys.executable, "-c", HOLDER_SCRIPT]
    with (
        unshare("1", tmp_path) as rank,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdin is not None
        addresses = tuple(holder.stdout.readline().split())
        held = Path(f"/proc/{holder.pid}/fd").iterdir()
        hub = next(descriptor for descriptor in held if os.readlink(descriptor).startswith("net:"))
        network = ClusterNetwork(addresses, os.open(hub, os.O_RDONLY))
        network.connect(1, rank.pid)
        network.close()
        assert interface(addresses[0]) == expected_interface(addresses[0])

        if killed:
            holder.kill()
        else:
            holder.stdin.close()
        holder.wait()
        wait_until_removed(addresses[0])

        assert "eth0" not in interfaces("nsenter", f"--net=/proc/{rank.pid}/ns/net")


def test_network_exists_while_another_process_has_it_open(tmp_path: Path) -> None:
    """A network exists as long as a process to which its descriptor was passed."""
    network = ClusterNetwork.create(2)
    address = network.addresses[0]
    with started("0") as head, unshare("1", tmp_path) as rank:
        network.connect(1, rank.pid)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[network.descriptor]) as keeper:
            network.close()
            network.close()
            assert network.descriptor == -1
            assert rank.connect(address, head.port) == f"0 {network.addresses[1]}"
            keeper.kill()
        wait_until_removed(address)


def test_children_do_not_inherit_the_network(create: Callable[[int], ClusterNetwork]) -> None:
    """A child process has the network's descriptor only if it is passed to it."""
    network = create(2)

    assert not os.get_inheritable(network.descriptor)


@pytest.mark.parametrize("command", ["v0", "address add", "bridge", "master"])
def test_failed_creation_leaves_nothing(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one command of `ip` fails, the interfaces and descriptors that were created before it are removed."""
    fake, real = tmp_path / "ip", shutil.which("ip")
    lines = f"sed '/{command}/ s/.*/link set nosuchlink up/'"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *-batch*) {lines} | {real} "$@";; *) exec {real} "$@";; esac\n')
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(local_network.random, "shuffle", lambda items: items.sort())
    expected, files = next(local_network._unused_networks())[1], open_files()

    with pytest.raises(OSError, match="nosuchlink"):
        ClusterNetwork.create(2)

    wait_until_removed(str(expected))
    assert open_files() == files


def test_connect_requires_a_network_namespace(create: Callable[[int], ClusterNetwork]) -> None:
    """`connect` refuses a process in this machine's own network, rank 0, and a process that has exited."""
    network = create(2)
    with started("0") as rank:
        with pytest.raises(OSError, match="has no network namespace of its own"):
            network.connect(1, rank.pid)
        with pytest.raises(ValueError, match="rank must be 1 to 1, not 0"):
            network.connect(0, rank.pid)
    with pytest.raises(FileNotFoundError):
        network.connect(1, rank.pid)


def test_more_nodes_than_addresses_are_refused() -> None:
    """`create` refuses more nodes than a /24 network has addresses."""
    with pytest.raises(ValueError, match="1 to 254, not 255"):
        ClusterNetwork.create(255)


def on_another_machine(setup: str, expression: str) -> str:
    """Evaluate an expression in a network namespace that some shell commands have configured."""
    code = f"from skyrl_modal.backends.local.network import *; print({expression})"
    script = f'set -e; ip link set lo up; {setup}; exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, sys.executable, code], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


address_of = functools.partial(on_another_machine, expression="ClusterNetwork.create(2).addresses[0]")


def test_networks_in_use_are_avoided() -> None:
    """A network that the machine has an address in or a route to is not used."""
    tun = "ip link add t0 type veth peer name t1"  # not up: its address has no route yet

    assert address_of("true").startswith("198.19.")
    assert address_of("ip route add blackhole 198.19.0.0/16").startswith("198.18.")
    assert address_of(f"{tun}; ip address add 198.19.0.1/16 dev t0").startswith("198.18.")
    assert address_of(
        "ip route add blackhole 198.19.0.0/16; ip route add blackhole 198.18.0.0/17; "
        "for k in $(seq 129 255); do ip route add blackhole 198.18.$k.0/28; done"
    ) == ("198.18.128.1")


def test_routes_to_the_internet_do_not_count_as_in_use() -> None:
    """A default route, or a VPN's route to half of all addresses, does not exclude networks."""
    assert address_of("ip route add blackhole 128.0.0.0/1; ip route add blackhole default").startswith("198.19.")


def test_no_free_network_is_reported() -> None:
    """If all networks are in use, the reason names them."""
    assert on_another_machine("ip route add blackhole 198.18.0.0/15", "unavailable_reason()") == (
        "no network is free in 198.19.0.0/16 and 198.18.0.0/16"
    )


def test_a_firewall_is_detected_before_a_run() -> None:
    """A machine that refuses connections from private networks is detected, here by a routing rule."""
    rules = "ip rule add pref 9 lookup local; ip rule del pref 0; ip rule add pref 8 from 198.18.0.0/15 prohibit"

    assert on_another_machine(rules, "unavailable_reason()").startswith("this machine refuses connections")


def test_an_ordinary_user_cannot_create_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for an ordinary user is that only root may add interfaces."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert unavailable_reason.__wrapped__() == "only root may add an interface to this machine's network"


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason names each tool that is not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert unavailable_reason.__wrapped__() == "not installed: ip, nsenter, unshare"


@pytest.mark.parametrize("failures", [1, 99])
def test_temporary_failures_are_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failures: int) -> None:
    """A lack of memory at one moment is tried again. If it remains, the start is refused, and nothing is stored."""
    script = (
        f'#!/bin/sh\necho x >> "$0.calls"\nif [ "$(wc -l < "$0.calls")" -le {failures} ]; then\n'
        'echo "unshare: unshare failed: Cannot allocate memory" >&2; exit 1\nfi\n'
        f'exec {shutil.which("unshare")} "$@"\n'
    )
    (tmp_path / "unshare").write_text(script)
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(local_network, "RETRY_DELAYS", (0.0, 0.0))

    if failures == 1:
        assert unavailable_reason.__wrapped__() is None
    else:
        with pytest.raises(BackendUnavailable, match="may be temporary"):
            unavailable_reason.__wrapped__()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("sys_admin", "unshare: unshare failed: Operation not permitted"),
        ("net_admin", "RTNETLINK answers: Operation not permitted; Command failed -:1"),
    ],
)
def test_missing_capabilities_are_reported(missing: str, message: str) -> None:
    """If root lacks a capability, as in a Docker container, the reason is the message of the tool."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    dropped = ["setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}"]
    code = "from skyrl_modal.backends.local.network import unavailable_reason; print(unavailable_reason())"

    done = subprocess.run([*dropped, sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == message
