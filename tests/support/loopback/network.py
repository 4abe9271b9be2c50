"""Each container's own network: 127.0.0.1 is its own, and the members of a cluster have addresses on a common bridge.

The bridge lives in a namespace of its own, held by a helper process that ends with this one: the machine's network is
not touched. Root needs nothing for it; an ordinary user gets it within a user namespace.

Assumed of Modal: ports of containers do not meet; a container's host name resolves to its address. Unlike Modal's,
these containers reach nothing outside.
"""

from __future__ import annotations

import array
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import attrs

CLONE_NEWNET, IP_FREEBIND = 0x40000000, 15
LOOPBACK = "127.0.0.1"

# For an ordinary user: enter a container's namespaces, make the socket there, send it here.
HELPER = """
import array, ctypes, os, socket, sys
pid, back, kind, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
for name in ("user", "net"):
    if libc.setns(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), 0):
        sys.exit(f"setns {name}: {os.strerror(ctypes.get_errno())}")
made = socket.socket()
if kind == "listen":
    made.setsockopt(socket.IPPROTO_IP, 15, 1)
    made.bind(("127.0.0.1", port))
    made.listen(128)
else:
    made.connect(("127.0.0.1", port))
socket.socket(fileno=back).sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
"""


def is_root() -> bool:
    return os.geteuid() == 0


def bridges_possible() -> bool:
    """Whether the members of a cluster can have addresses of their own."""
    if not all(shutil.which(name) for name in ("ip", "nsenter", "unshare")):
        return False
    probe = ["unshare", *([] if is_root() else ["--user", "--map-root-user"]), "--net", "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def _run(command: list[str], text: str = "", pass_fds: tuple[int, ...] = ()) -> None:
    told = subprocess.run(command, check=False, input=text, text=True, capture_output=True, pass_fds=pass_fds)
    if told.returncode != 0:
        raise OSError(f"{' '.join(command[:3])} ...: {told.stdout}{told.stderr}")


def _make(kind: str, port: int) -> socket.socket:
    made = socket.socket()
    if kind == "listen":
        made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # the interface may not be up yet
        made.bind((LOOPBACK, port))
        made.listen(128)
    else:
        made.connect((LOOPBACK, port))
    return made


def _by_thread(pid: int, kind: str, port: int) -> socket.socket:
    made: list[socket.socket] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(namespace, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(namespace)
            made.append(_make(kind, port))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=work)  # the namespace is the thread's, and ends with it
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _by_process(pid: int, kind: str, port: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-I", "-S", "-c", HELPER, str(pid), str(theirs.fileno()), kind, str(port)]
        _run(command, pass_fds=(theirs.fileno(),))
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][:4])
    return socket.socket(fileno=fds[0])


def socket_in(pid: int, kind: str, port: int) -> socket.socket:
    """A socket that listens on, or is connected to, a port of 127.0.0.1 as a container has it. Blocks."""
    return (_by_thread if is_root() else _by_process)(pid, kind, port)


@attrs.define(eq=False)
class Bridge:
    """One cluster's network."""

    process: subprocess.Popen[bytes]
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def create(cls) -> Bridge:
        """Blocks."""
        user = [] if is_root() else ["--user", "--map-root-user"]
        command = ["unshare", *user, "--net", "cat"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()  # it is in its namespaces
        bridge = cls(process)
        bridge._ip(process.pid, "link add hub type bridge", "link set hub up", "link set lo up")
        return bridge

    @staticmethod
    def ipv4(rank: int) -> str:
        return f"10.100.0.{rank + 10}"

    @staticmethod
    def ipv6(rank: int) -> str:
        return f"fdaa::{rank + 10:x}"

    @property
    def enter(self) -> list[str]:
        """The words before a command that shall run where it has power over the bridge; none for root."""
        return [] if is_root() else ["nsenter", f"--target={self.process.pid}", "--user", "--preserve-credentials"]

    def _ip(self, pid: int, *lines: str) -> None:
        command = [*(self.enter or ["nsenter"]), f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
        _run(command, "\n".join(lines) + "\n")

    def join(self, rank: int, pid: int) -> None:
        """Connect the container of this rank. Blocks."""
        with self.lock:
            self._ip(
                self.process.pid,
                f"link add v{rank} type veth peer name eth0 netns {pid}",
                f"link set v{rank} master hub",
                f"link set v{rank} up",
            )
        # Its lo is bubblewrap's to set up, which fails where that is done already.
        self._ip(
            pid,
            f"address add {self.ipv4(rank)}/24 dev eth0",
            f"address add {self.ipv6(rank)}/64 dev eth0 nodad",
            "link set eth0 up",
        )

    def close(self) -> None:
        if self.process.returncode is None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


def hosts(addresses: dict[str, str]) -> str:
    """The text of /etc/hosts with these names beside localhost."""
    lines = [f"{LOOPBACK} localhost", "::1 localhost ip6-localhost"]
    return "\n".join(lines + [f"{address} {name}" for name, address in addresses.items()]) + "\n"


def resolver() -> Path | None:
    """Where /etc/resolv.conf really is, if a container can have another one there."""
    path = Path("/etc/resolv.conf").resolve()
    return path if path.is_file() and path.parts[1] == "etc" else None
