"""Functions that the tests run in containers. Imports the standard library and modal only."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import modal

print("imported")


def double(number: int) -> int:
    print("doubling", number)
    return 2 * number


def echo(data: object) -> object:
    return data


def print_text(text: str, error: str = "", times: int = 1) -> None:
    for _ in range(times):
        sys.stdout.write(text)
    sys.stdout.flush()
    sys.stderr.write(error)
    sys.stderr.flush()


def print_bytes(pieces: list[bytes]) -> None:
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
    """Return the text before and after a reload, which happens when another container has committed `wait_for`."""
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
    """Wait, and print the exception that ends the wait."""
    print(note, flush=True)
    try:
        time.sleep(seconds)
    except BaseException as exc:
        print("ended by", type(exc).__name__, flush=True)
        raise
    return "waited"


def stubborn() -> None:
    """Ignore SIGINT, SIGTERM and cancellations, also in a child process."""
    subprocess.Popen(["sh", "-c", "trap '' INT TERM; while :; do sleep 1; done"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("waiting", flush=True)
    while True:
        try:
            time.sleep(1)
        except BaseException:
            print("ignored", flush=True)


def once_then_return(path: str, volume: str) -> list[str]:
    """Record each attempt in a file on the volume. The first attempt waits until it is ended."""
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
    """Serve the own rank on the own address; rank 0 reads the rank from every other member."""
    cluster = modal.Cluster.from_context()
    rank, addresses = cluster.container_rank(), cluster.container_ips(family="ipv4")
    print("rank", rank, flush=True)
    with socket.create_server((addresses[rank], 8765)) as server:
        answers = [rank]
        if rank == 0:
            for other in addresses[1:]:
                answers.append(_read_rank(other))
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


def _read_rank(address: str) -> int:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((address, 8765), 5) as connection:
                return int(connection.recv(10))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def rank_waits(acting_rank: int, action: str) -> int:
    """Raise or return in one rank, and wait in the others."""
    rank = modal.Cluster.from_context().container_rank()
    print("rank", rank, "is up", flush=True)
    if rank == acting_rank and action == "raise":
        raise ValueError(f"rank {rank} failed")
    if rank == acting_rank and action == "return":
        return rank
    time.sleep(600)
    return -1


def serve_through_tunnel() -> bytes:
    """Serve one connection from outside, and return the data that it sent."""
    with socket.create_server(("127.0.0.1", 8000)) as server, modal.forward(8000, unencrypted=True) as tunnel:
        print("tunnel", *tunnel.tcp_socket, flush=True)
        connection, _ = server.accept()
        with connection:
            data = connection.recv(100)
            connection.sendall(b"received " + data)
        return data


def holds_port(port: int, volume: str, name: str, others: int) -> int:
    """Listen on a port until `others` containers listen on theirs."""
    with socket.create_server(("127.0.0.1", port)):
        Path("/data", name).touch()
        handle = modal.Volume.from_name(volume)
        handle.commit()
        while (seen := len(os.listdir("/data"))) < others:
            handle.reload()
            time.sleep(0.05)
    return seen


def run_program(*command: str) -> tuple[int, str]:
    """Return the exit code and the output of a program."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def runtime_modules(name: str) -> dict[str, object]:
    """Return sys.path, and whether this process and a child process can import a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    here = importlib.util.find_spec(name) is not None
    return {"path": list(sys.path), "here": here, "child": run_program(sys.executable, "-c", code)[0] == 0}


def write_error(path: str) -> int:
    """Return the error number of an attempt to change a file; 0 if it can be changed."""
    try:
        Path(path).write_text("changed")
    except OSError as error:
        return error.errno or -1
    return 0


def pidfd_error() -> int:
    """Return the error number of pidfd_open; 0 if it succeeds."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return error.errno or -1
    return 0


def commit_until_it_works(path: str, volume: str) -> list[str]:
    """Write a file and commit it until no error is raised. Return the errors."""
    handle, errors = modal.Volume.from_name(volume), []
    Path(path).write_text("text")
    while True:
        try:
            handle.commit()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.5)
        else:
            return errors


def commit_with_open_file(path: str, volume: str) -> str:
    """Return the error of a commit while a file of the volume is open."""
    with Path(path).open("w") as file:
        file.write("text")
        file.flush()
        try:
            modal.Volume.from_name(volume).commit()
        except RuntimeError as error:
            return str(error)
    return ""


def seen_during_commit(folder: str, volume: str) -> list[bool]:
    """Return whether a file of a volume seemed to exist while the volume was committed."""
    (Path(folder) / "kept").write_text("text")
    seen, over = set(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add((Path(folder) / "kept").exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    modal.Volume.from_name(volume).commit()
    over.set()
    watcher.join()
    return sorted(seen)


def commits_together(path: str, volume: str, number: int) -> None:
    """Commit a file in each of several containers at about the same time."""
    Path(path).write_text(str(number))
    modal.Volume.from_name(volume).commit()


def saves_for(seconds: float) -> None:
    """Wait, and go on for some seconds after the signal to stop."""
    print("waiting", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("saving", flush=True)
        time.sleep(seconds)
        print("saved", flush=True)
        raise
