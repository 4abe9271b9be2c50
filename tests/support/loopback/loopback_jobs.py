"""What the tests run in containers. A module of its own, with the standard library and modal only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import modal

print("imported")


def double(number: int) -> int:
    print("doubling", number)
    return 2 * number


def echo(data: object) -> object:
    return data


def say(text: str, error: str = "", times: int = 1) -> None:
    for _ in range(times):
        sys.stdout.write(text)
    sys.stdout.flush()
    sys.stderr.write(error)
    sys.stderr.flush()


def say_bytes(pieces: list[bytes]) -> None:
    for piece in pieces:
        os.write(1, piece)


def environment() -> dict[str, str]:
    return dict(os.environ)


def facts() -> dict[str, object]:
    return {
        "python": sys.version_info[:2],
        "pid": os.getpid(),
        "uid": os.getuid(),
        "cwd": str(Path.cwd()),
        "root": sorted(os.listdir("/")),
        "home": sorted(os.listdir("/root")),
        "tmp": sorted(os.listdir("/tmp")),
        "task": os.environ["MODAL_TASK_ID"],
    }


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def tree(path: str) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in Path(path).rglob("*") if "__pycache__" not in entry.parts)


def write(path: str, text: str, commit: str = "") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    if commit:
        modal.Volume.from_name(commit).commit()
    return str(Path(path).resolve())


def read_after_reload(path: str, volume: str, wait_for: str = "") -> tuple[str, str]:
    """The text before and after a reload, which comes once another container has committed the awaited file."""
    before = Path(path).read_text() if Path(path).exists() else ""
    handle = modal.Volume.from_name(volume)
    while wait_for and not Path(wait_for).exists():
        handle.reload()
        time.sleep(0.05)
    handle.reload()
    return before, Path(path).read_text() if Path(path).exists() else ""


def reload_with_open_file(path: str, volume: str) -> str:
    with Path(path).open("w"):
        try:
            modal.Volume.from_name(volume).reload()
        except RuntimeError as exc:
            return str(exc)
    return "reloaded"


def wait(note: str = "waiting", seconds: float = 600.0) -> str:
    """Wait, and tell what ended it."""
    print(note, flush=True)
    try:
        time.sleep(seconds)
    except BaseException as exc:
        print("ended by", type(exc).__name__, flush=True)
        raise
    return "waited"


def stubborn() -> None:
    """Ignore every polite end, with a child that does so too."""
    subprocess.Popen(["sh", "-c", "trap '' INT TERM; while :; do sleep 1; done"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("waiting", flush=True)
    while True:
        try:
            time.sleep(1)
        except BaseException:
            print("not impressed", flush=True)


def once_then_return(path: str, volume: str) -> list[str]:
    """The first attempt waits for ever; each is counted in a file on the volume."""
    handle = modal.Volume.from_name(volume)
    attempts = Path(path)
    with attempts.open("a") as file:
        file.write(os.environ["MODAL_TASK_ID"] + "\n")
    handle.commit()
    lines = attempts.read_text().split()
    print("attempt", len(lines), flush=True)
    if len(lines) == 1:
        time.sleep(600)
    return lines


def fail_until(path: str, volume: str, success: int) -> int:
    handle = modal.Volume.from_name(volume)
    attempts = Path(path)
    with attempts.open("a") as file:
        file.write("x")
    handle.commit()
    number = len(attempts.read_text())
    print("attempt", number, flush=True)
    if number < success:
        raise ValueError(f"attempt {number}")
    return number


def die(code: int) -> None:
    os._exit(code)


def ticks(count: int, pause: float) -> None:
    for number in range(count):
        print("tick", number, flush=True)
        time.sleep(pause)


def rank_facts(data: bytes = b"") -> dict[str, object]:
    """Each rank serves its rank on its own address; rank 0 asks all."""
    cluster = modal.Cluster.from_context()
    rank, addresses = cluster.container_rank(), cluster.container_ips(family="ipv4")
    print("rank", rank, flush=True)
    with socket.create_server((addresses[rank], 8765)) as server:
        answers = [rank]
        if rank == 0:
            for other in addresses[1:]:
                answers.append(_ask(other))
        else:
            connection, _ = server.accept()
            with connection:
                connection.sendall(str(rank).encode())
        return {
            "rank": rank,
            "addresses": addresses,
            "answers": answers,
            "containers": cluster.container_ids(),
            "host": os.environ["NCCL_HOSTID"],
            "data": data,
        }


def _ask(address: str) -> int:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((address, 8765), 5) as connection:
                return int(connection.recv(10))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def rank_waits(who: int, what: str) -> int:
    """One rank does something; the others wait."""
    rank = modal.Cluster.from_context().container_rank()
    print("rank", rank, "is up", flush=True)
    if rank == who and what == "raise":
        raise ValueError(f"rank {rank} failed")
    if rank == who and what == "return":
        return rank
    time.sleep(600)
    return -1


def serve_through_tunnel() -> bytes:
    """Serve one connection from outside, then return what it said."""
    with socket.create_server(("127.0.0.1", 8000)) as server, modal.forward(8000, unencrypted=True) as tunnel:
        print("tunnel", *tunnel.tcp_socket, flush=True)
        connection, _ = server.accept()
        with connection:
            said = connection.recv(100)
            connection.sendall(b"heard " + said)
        return said


def holds_port(port: int, volume: str, name: str, others: int) -> int:
    """Hold a port until so many others hold theirs."""
    with socket.create_server(("127.0.0.1", port)):
        Path("/data", name).touch()
        handle = modal.Volume.from_name(volume)
        handle.commit()
        while (seen := len(os.listdir("/data"))) < others:
            handle.reload()
            time.sleep(0.05)
    return seen
