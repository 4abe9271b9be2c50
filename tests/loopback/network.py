"""Network namespaces for a cluster's containers, each with its own addresses, joined by a bridge. For root only.

The bridge lives in a namespace of its own and all namespaces are anonymous, held by file descriptors: the machine's own
network is not touched, and whatever ends this process ends them too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

import attrs

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
LOOPBACK = "127.0.0.1"


def possible() -> bool:
    """Whether this process can make such networks."""
    return os.geteuid() == 0 and bool(shutil.which("ip") and shutil.which("nsenter"))


def _in_thread(work: Callable[[], T]) -> T:
    """Run something in a thread of its own, whose namespace ends with it."""
    result: list[T] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as exc:
            error.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]


def _libc(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _new_namespace() -> int:
    def work() -> int:
        _libc("unshare", CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(work)


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _ip(namespace: int, *lines: str) -> None:
    subprocess.run(
        ["nsenter", f"--net={_path(namespace)}", "ip", "-batch", "-"],
        input="\n".join(lines) + "\n",
        check=True,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@attrs.define(eq=False)
class Network:
    """One cluster's network."""

    hub: int = attrs.field(factory=_new_namespace)
    namespaces: dict[int, int] = attrs.field(factory=dict)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    @staticmethod
    def ipv4(rank: int) -> str:
        return f"10.100.0.{rank + 10}"

    @staticmethod
    def ipv6(rank: int) -> str:
        return f"fdaa::{rank + 10:x}"

    def __attrs_post_init__(self) -> None:
        _ip(self.hub, "link add hub type bridge", "link set hub up", "link set lo up")

    def join(self, rank: int) -> int:
        """A namespace for the container of this rank. Blocks."""
        namespace = _new_namespace()
        self.namespaces[rank] = namespace
        with self.lock:
            _ip(
                self.hub,
                f"link add v{rank} type veth peer name eth0 netns {_path(namespace)}",
                f"link set v{rank} master hub",
                f"link set v{rank} up",
            )
        _ip(
            namespace,
            "link set lo up",
            f"address add {self.ipv4(rank)}/24 dev eth0",
            f"address add {self.ipv6(rank)}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {self.ipv4(rank)}",
        )
        return namespace

    def listen(self, rank: int, port: int) -> socket.socket:
        """A socket that listens on the container's own 127.0.0.1, for what the machine's serves."""

        def work() -> socket.socket:
            _libc("setns", self.namespaces[rank], CLONE_NEWNET)
            listener = socket.socket()
            listener.bind((LOOPBACK, port))
            listener.listen(128)
            return listener

        return _in_thread(work)

    def close(self) -> None:
        for namespace in [self.hub, *self.namespaces.values()]:
            with contextlib.suppress(OSError):
                os.close(namespace)
        self.namespaces.clear()
