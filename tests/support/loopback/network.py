"""Networks of containers: a private 127.0.0.1 for each, and a bridge that connects the members of a cluster.

The bridge is in a separate network namespace, held by a helper process that exits with this one, so the machine's
network is not changed. An ordinary user creates it within a user namespace.

Assumptions about Modal: containers do not share ports, and a container's host name resolves to its address. Unlike
containers on Modal, these containers have no access to other networks.
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

# For an ordinary user: enter a container's namespaces, create the socket there, and send it to this process.
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
    """Return whether the members of a cluster can have their own addresses."""
    if not all(shutil.which(name) for name in ("ip", "nsenter", "unshare")):
        return False
    probe = ["unshare", *([] if is_root() else ["--user", "--map-root-user"]), "--net", "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def _run(command: list[str], text: str = "", pass_fds: tuple[int, ...] = ()) -> None:
    done = subprocess.run(command, check=False, input=text, text=True, capture_output=True, pass_fds=pass_fds)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command[:3])} ...: {done.stdout}{done.stderr}")


def _make(kind: str, port: int) -> socket.socket:
    made = socket.socket()
    if kind == "listen":
        made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # the interface may still be down
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

    thread = threading.Thread(target=work)  # setns changes the namespace of one thread only
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _by_process(pid: int, kind: str, port: int) -> socket.socket:
    parent_end, child_end = socket.socketpair()
    with parent_end, child_end:
        command = [sys.executable, "-I", "-S", "-c", HELPER, str(pid), str(child_end.fileno()), kind, str(port)]
        _run(command, pass_fds=(child_end.fileno(),))
        _, ancillary, _, _ = parent_end.recvmsg(1, socket.CMSG_LEN(4))
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][:4])
    return socket.socket(fileno=fds[0])


def socket_in(pid: int, kind: str, port: int) -> socket.socket:
    """Return a socket in a container's network that listens on, or is connected to, a port of 127.0.0.1. Blocks."""
    return (_by_thread if is_root() else _by_process)(pid, kind, port)


@attrs.define(eq=False)
class Bridge:
    """The network of one cluster."""

    process: subprocess.Popen[bytes]
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def create(cls) -> Bridge:
        """Create the namespace and the bridge. Blocks."""
        user = [] if is_root() else ["--user", "--map-root-user"]
        command = ["unshare", *user, "--net", "cat"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()  # cat answers only after unshare has created the namespaces
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
        """Command prefix that runs a command with permission to change the bridge; empty for root."""
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
        # Leave lo alone: bubblewrap sets it up, and fails if it is already up.
        self._ip(
            pid,
            f"address add {self.ipv4(rank)}/24 dev eth0",
            f"address add {self.ipv6(rank)}/64 dev eth0 nodad",
            "link set eth0 up",
        )

    def close(self) -> None:
        """End the helper process, and with it the namespace."""
        if self.process.returncode is None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


def hosts(addresses: dict[str, str]) -> str:
    """Return the text of an /etc/hosts file with localhost and these names."""
    lines = [f"{LOOPBACK} localhost", "::1 localhost ip6-localhost"]
    return "\n".join(lines + [f"{address} {name}" for name, address in addresses.items()]) + "\n"


def resolver() -> Path | None:
    """Return the real path of /etc/resolv.conf, or None if a container cannot have another file there."""
    path = Path("/etc/resolv.conf").resolve()
    return path if path.is_file() and path.parts[1] == "etc" else None
