"""The network of a local run on several nodes, on real namespaces: who reaches whom, and what is left afterwards."""

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
from skyrl_modal.backends.local.network import ClusterNetwork, cannot
from skyrl_modal.backends.local.sandbox import find_sandbox

RTMGRP_LINK = 1
#: Tells its port, greets whoever calls with its own name, and calls whom it is told to.
RANK = """
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
#: Holds a network until it ends, and tells its addresses.
HOLDER = """
import sys
from skyrl_modal.backends.local.network import ClusterNetwork
network = ClusterNetwork.create(2)
print(*network.addresses, flush=True)
sys.stdin.read()
"""


@define(eq=False)
class Rank:
    """A process that answers by TCP; the pid is that of one in its namespaces."""

    process: subprocess.Popen[str]
    pid: int
    port: int

    def call(self, address: str, port: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{address} {port}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def started(name: str, *before: str, info: Path | None = None) -> Iterator[Rank]:
    """A rank by these words before its command. It ends when its input is closed."""
    command = [*before, sys.executable, "-I", "-S", "-c", RANK, name]
    with contextlib.ExitStack() as stack:
        passed = []
        if info is not None:
            file = stack.enter_context(open(info, "wb"))
            command[len(before) : len(before)] = ["--info-fd", str(file.fileno())]
            passed.append(file.fileno())
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=passed)
        )
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Rank(process, json.loads(info.read_text())["child-pid"] if info else process.pid, port)


def bubblewrap(name: str, folder: Path) -> contextlib.AbstractContextManager[Rank]:
    """A rank as a run has it: in a bubblewrap, which tells its pid."""
    sandbox = find_sandbox(folder).sandbox
    if sandbox is None:
        pytest.skip("no bubblewrap works here")
    options = ["--dev-bind", "/", "/", "--unshare-pid", "--as-pid-1", "--proc", "/proc", "--unshare-net"]
    return started(name, sandbox.binary, *sandbox.options, *options, info=folder / f"{name}.json")


def unshare(name: str, folder: Path) -> contextlib.AbstractContextManager[Rank]:
    return started(name, "unshare", "--net")


@pytest.fixture(autouse=True)
def possible() -> None:
    if (reason := cannot()) is not None:
        pytest.skip(f"no private network between processes can be had here: {reason}")


@pytest.fixture
def create() -> Iterator[Callable[[int], ClusterNetwork]]:
    """Make networks that are closed after the test, and are gone then."""
    networks: list[ClusterNetwork] = []

    def make(nodes: int) -> ClusterNetwork:
        networks.append(ClusterNetwork.create(nodes))
        return networks[-1]

    yield make
    for network in networks:
        network.close()
        wait_until_gone(network.addresses[0])


def interface(address: str) -> str | None:
    """The name of this machine's interface that has the address."""
    told = subprocess.run(["ip", "-json", "-4", "address"], check=True, capture_output=True, text=True)
    for link in json.loads(told.stdout):
        if any(item["local"] == address for item in link["addr_info"]):
            return str(link["ifname"])
    return None


def name_of(address: str) -> str:
    return "skyrl-{}-{}".format(*address.split(".")[1:3])


def wait_until_gone(address: str) -> None:
    """Wait for the kernel to remove the interface of a network that nobody holds: it tells of each change."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
        news.bind((0, RTMGRP_LINK))
        news.settimeout(60)
        while name_of(address) in links():
            news.recv(65536)


def links() -> set[str]:
    told = subprocess.run(["ip", "-json", "link"], check=True, capture_output=True, text=True)
    return {link["ifname"] for link in json.loads(told.stdout)}


def open_files() -> set[str]:
    return {entry for entry in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{entry}")}


@pytest.mark.parametrize("isolated", [bubblewrap, unshare])
def test_every_rank_reaches_every_other_rank(
    isolated: Callable[[str, Path], contextlib.AbstractContextManager[Rank]],
    create: Callable[[int], ClusterNetwork],
    tmp_path: Path,
) -> None:
    with started("0") as head, isolated("1", tmp_path) as first, isolated("2", tmp_path) as second:
        network = create(3)
        network.join(1, first.pid)
        network.join(2, second.pid)
        ranks = [head, first, second]

        met = {(i, j): ranks[i].call(network.addresses[j], ranks[j].port) for i in range(3) for j in range(3) if i != j}

    assert met == {(i, j): f"{j} {network.addresses[i]}" for i, j in met}, "who answered, and what the caller is called"
    assert len(met) == 6


def test_a_rank_has_no_way_to_anything_else(create: Callable[[int], ClusterNetwork], tmp_path: Path) -> None:
    with started("0") as head, unshare("1", tmp_path) as first, unshare("other", tmp_path) as stranger:
        network, other = create(2), create(2)
        network.join(1, first.pid)
        other.join(1, stranger.pid)

        assert first.call(network.addresses[0], head.port) == f"0 {network.addresses[1]}"
        assert first.call(other.addresses[0], head.port) == "OSError", "Network is unreachable"
        assert first.call(other.addresses[1], stranger.port) == "OSError"


def test_networks_made_at_the_same_moment_differ(
    create: Callable[[int], ClusterNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them want the same one first."""
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
    assert all(interface(network.addresses[0]) == name_of(network.addresses[0]) for network in networks)


@pytest.mark.parametrize("killed", [True, False])
def test_nothing_is_left_of_a_network_whose_holder_has_ended(killed: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER]
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
        network.join(1, rank.pid)
        network.close()
        assert interface(addresses[0]) == name_of(addresses[0])

        if killed:
            holder.kill()
        else:
            holder.stdin.close()
        holder.wait()
        wait_until_gone(addresses[0])

        told = subprocess.run(
            ["nsenter", f"--net=/proc/{rank.pid}/ns/net", "ip", "-json", "link"], check=True, capture_output=True
        )
        assert "eth0" not in {link["ifname"] for link in json.loads(told.stdout)}, "a rank that still runs lost its end"


def test_it_lives_on_with_whom_the_descriptor_was_passed_to(tmp_path: Path) -> None:
    network = ClusterNetwork.create(2)
    address = network.addresses[0]
    with started("0") as head, unshare("1", tmp_path) as rank:
        network.join(1, rank.pid)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[network.descriptor]) as keeper:
            network.close()
            network.close()
            assert network.descriptor == -1
            assert rank.call(address, head.port) == f"0 {network.addresses[1]}"
            keeper.kill()
        wait_until_gone(address)


def test_children_do_not_inherit_it(create: Callable[[int], ClusterNetwork]) -> None:
    network = create(2)

    assert not os.get_inheritable(network.descriptor)


@pytest.mark.parametrize("word", ["v0", "address add", "bridge", "master"])
def test_of_a_network_that_could_not_be_made_nothing_is_left(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ip` is one that fails in the middle of it."""
    fake, real = tmp_path / "ip", shutil.which("ip")
    lines = f"sed '/{word}/ s/.*/link set nosuchlink up/'"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *-batch*) {lines} | {real} "$@";; *) exec {real} "$@";; esac\n')
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(local_network.random, "shuffle", lambda items: items.sort())
    expected, files = next(local_network._free_networks())[1], open_files()

    with pytest.raises(OSError, match="nosuchlink"):
        ClusterNetwork.create(2)

    wait_until_gone(str(expected))
    assert open_files() == files


def test_a_process_without_a_network_of_its_own_cannot_join(create: Callable[[int], ClusterNetwork]) -> None:
    network = create(2)
    with started("0") as rank:
        with pytest.raises(OSError, match="has no network namespace of its own"):
            network.join(1, rank.pid)
        with pytest.raises(ValueError, match="rank must be 1 to 1, not 0"):
            network.join(0, rank.pid)
    with pytest.raises(FileNotFoundError):
        network.join(1, rank.pid)


def test_more_nodes_than_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 254, not 255"):
        ClusterNetwork.create(255)


def elsewhere(setup: str, expression: str) -> str:
    """What an expression is on another machine: in a network namespace that these commands have set up."""
    code = f"from skyrl_modal.backends.local.network import *; print({expression})"
    script = f'set -e; ip link set lo up; {setup}; exec "$0" -c "$1"'
    told = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, sys.executable, code], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


address_of = functools.partial(elsewhere, expression="ClusterNetwork.create(2).addresses[0]")


def test_it_keeps_away_from_what_the_machine_uses() -> None:
    tun = "ip link add t0 type veth peer name t1"  # not up: its address has no route yet

    assert address_of("true").startswith("198.19.")
    assert address_of("ip route add blackhole 198.19.0.0/16").startswith("198.18.")
    assert address_of(f"{tun}; ip address add 198.19.0.1/16 dev t0").startswith("198.18.")
    assert address_of(
        "ip route add blackhole 198.19.0.0/16; ip route add blackhole 198.18.0.0/17; "
        "for k in $(seq 129 255); do ip route add blackhole 198.18.$k.0/28; done"
    ) == ("198.18.128.1")


def test_a_route_to_everything_is_no_hindrance() -> None:
    assert address_of("ip route add blackhole 128.0.0.0/1; ip route add blackhole default").startswith("198.19.")


def test_it_says_that_no_network_is_free() -> None:
    assert elsewhere("ip route add blackhole 198.18.0.0/15", "cannot()") == (
        "no network is free in 198.19.0.0/16 and 198.18.0.0/16"
    )


def test_a_firewall_is_noticed_before_a_run_waits_for_ranks_that_cannot_call() -> None:
    """Packets of such a network are refused here before they are looked at; rules of iptables do the same."""
    rules = "ip rule add pref 9 lookup local; ip rule del pref 0; ip rule add pref 8 from 198.18.0.0/15 prohibit"

    assert elsewhere(rules, "cannot()").startswith("this machine takes no connections from a private network: ")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert cannot.__wrapped__() == "only root may add an interface to this machine's network"


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert cannot.__wrapped__() == "not installed: ip, nsenter, unshare"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("sys_admin", "unshare: unshare failed: Operation not permitted"),
        ("net_admin", "RTNETLINK answers: Operation not permitted; Command failed -:1"),
    ],
)
def test_where_root_may_not_do_it_the_tool_s_words_are_given(missing: str, words: str) -> None:
    """As root in a container of Docker's."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    dropped = ["setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}"]
    code = "from skyrl_modal.backends.local.network import cannot; print(cannot())"

    told = subprocess.run([*dropped, sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert told.stdout.strip() == words
