"""Attacks of other users, of programs of the network, of killed processes and of the command itself."""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from skyrl_modal.container.events import RankEvent
from skyrl_modal.container.rank_connections import RankServer
from tests.attacks.attack import Attack, Machine

OTHER_USER = 65534
#: Held while threading.excepthook is replaced.
_HOOK = threading.Lock()


class OpenFolders(Attack):
    """Folders of the user that a weak umask or an older version left open."""

    actor, promise = "other local user", "nothing of a run can be read or written by another user"

    def members(self) -> Sequence[str]:
        return ["umask 000", "umask 022", "umask 077", "existing folders 0777"]

    def setup(self, machine: Machine, member: str) -> None:
        if member.startswith("existing"):
            for name in ("data", "state", "cache"):
                folder = machine.home / name / "skyrl_modal"
                folder.mkdir(parents=True)
                folder.chmod(0o777)

    def act(self, machine: Machine, member: str) -> str:
        umask = int(member.split()[1], 8) if member.startswith("umask") else 0o022
        command = ("run", "--no-ray", "--gpu", "none", "echo private; echo x > /root/data/file")
        outcome = machine.call(*command, umask=umask)
        if outcome.returncode != 0:
            return outcome.problem or outcome.text
        top = [machine.home / name / "skyrl_modal" for name in ("data", "state", "cache")]
        opened = [str(path) for path in top if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
        return f"open: {opened}" if opened else ""


class SecondUser(Attack):
    """Another user reads the files of a run."""

    actor, promise = "other local user", "nothing of a run can be read or written by another user"
    needs_root = True

    def members(self) -> Sequence[str]:
        return ["volume", "index", "cache", "scratch of a live run"]

    def setup(self, machine: Machine, member: str) -> None:
        # The folders above are open, so that only those of the package protect the files.
        for folder in (machine.folder, *machine.folder.parents, machine.home):
            if stat.S_IMODE(folder.stat().st_mode) & 0o005 != 0o005:
                folder.chmod(0o755)

    def act(self, machine: Machine, member: str) -> str:
        reader = f"import os; os.setuid({OTHER_USER}); import sys; sys.path[:] = []\n" + (
            "for folder, _, names in os.walk(PLACE):\n"
            "    for name in names:\n"
            "        try: open(os.path.join(folder, name), 'rb').read(1); print(folder, name)\n"
            "        except OSError: pass\n"
        ).replace("PLACE", repr(str(machine.home)))
        if member.startswith("scratch"):
            process = subprocess.Popen(
                machine.command("run", "--no-ray", "--gpu", "none", "echo ready; cat"), cwd=machine.checkout,
                env=machine.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if process.stdout is not None:
                process.stdout.readline()
            done = subprocess.run([sys.executable, "-c", reader], capture_output=True, text=True, check=True)
            process.communicate()
        else:
            machine.run("echo private; echo x > /root/data/file")
            done = subprocess.run([sys.executable, "-c", reader], capture_output=True, text=True, check=True)
        return f"read: {done.stdout}" if done.stdout else ""


class PrintedSecrets(Attack):
    """The command prints the value of a secret."""

    actor, promise = "container", "the value is in no record, log or output"
    _VALUE = "q7Hn2vXkT9sLw4ZyB8dRc6Jm"
    _MULTILINE = "first-line-of-the-key-1\nsecond-line-of-the-key-2\n"
    _COMMANDS: ClassVar = {
        "plain": 'echo "$KEY"',
        "stderr": 'echo "$KEY" >&2',
        "in pieces": 'printf %s "${KEY:0:10}"; sleep 0.3; echo "${KEY:10}"',
        "twice": 'echo "$KEY$KEY"',
        "in a line": 'echo "before $KEY after"',
        "in an error": "python3 -c \"import os; raise ValueError(os.environ['KEY'])\"",
        "without newline": 'printf %s "$KEY"',
        "after binary": "printf '\\377\\000'; echo \"$KEY\"",
        "large output": "head -c 3000000 /dev/zero | tr '\\0' x; echo \"$KEY\"",
        "several lines": 'echo "$KEY"',
        "several lines, indented": 'echo "$KEY" | sed "s/^/    /"',
    }

    def members(self) -> Sequence[str]:
        return list(self._COMMANDS)

    def setup(self, machine: Machine, member: str) -> None:
        machine.env["KEY"] = self._MULTILINE if member.startswith("several") else self._VALUE

    def act(self, machine: Machine, member: str) -> str:
        command = f"bash -c {shlex.quote(self._COMMANDS[member])}"
        outcome = machine.run(command, "--secret", "KEY")
        parts = [part.encode() for part in machine.env["KEY"].split()]
        if any(part in outcome.text.encode() for part in parts):
            return "the value is in the output"
        for path in (machine.home / "data", machine.home / "state"):
            for file in path.rglob("*"):
                if file.is_file() and any(part in file.read_bytes() for part in parts):
                    return f"the value is in {file}"
        return outcome.problem if member != "in an error" else ""


class KilledTransfers(Attack):
    """A push or pull that is killed."""

    actor, promise = "power failure, SIGKILL", "the target has the old content or the new one"

    def members(self) -> Sequence[str]:
        return [f"{action} {size}" for action in ("push", "pull") for size in ("small", "large", "folder")]

    def setup(self, machine: Machine, member: str) -> None:
        machine.run("true")
        size = member.split()[1]
        self._source, self._target = machine.folder / "source", machine.folder / "target"
        if member.startswith("pull"):
            self._source = machine.volume / "source"
        else:
            self._target = machine.volume / "target"
        if size == "folder":
            self._source.mkdir()
            for number in range(50):
                (self._source / f"{number}").write_bytes(b"new" * 100_000)
        else:
            self._source.write_bytes(b"new" * (1000 if size == "small" else 60_000_000))
            self._target.write_bytes(b"old")

    def act(self, machine: Machine, member: str) -> str:
        action, size = member.split()
        remote = "/root/data/target" if action == "push" else "/root/data/source"
        arguments = [action, *((str(self._source), remote) if action == "push" else (remote, str(self._target)))]
        condition = self._target if size == "folder" else machine.folder / "never"
        if size == "folder":
            machine.kill_when(arguments, condition)
            partial = [path for path in self._target.glob("*") if path.is_file() and not path.name.startswith(".")]
            if any(path.stat().st_size != 300_000 for path in partial):
                return "a file is incomplete"
            return ""
        process = subprocess.Popen(
            machine.command(*arguments), cwd=machine.checkout, env=machine.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # The transfer has begun when a new file is beside the target.
        before = set(os.listdir(self._target.parent))
        while process.poll() is None and set(os.listdir(self._target.parent)) == before:
            pass
        process.kill()
        process.wait()
        found = self._target.stat().st_size
        return "" if found in (3, self._source.stat().st_size) else f"the target has {found} bytes"


class BrokenFolders(Attack):
    """Folders of the user that cannot be used."""

    actor, promise = "the machine", "one sentence with the path, and the next run works"

    def members(self) -> Sequence[str]:
        kinds = ("file in its place", "link to nothing", "link to itself")
        return [f"{name}: {kind}" for name in ("data", "state", "cache") for kind in kinds]

    def setup(self, machine: Machine, member: str) -> None:
        name, kind = member.split(": ")
        path = machine.home / name
        if kind == "file in its place":
            path.write_text("")
        else:
            path.symlink_to("nothing" if kind == "link to nothing" else name)

    def act(self, machine: Machine, member: str) -> str:
        name, _ = member.split(": ")
        outcome = machine.run("true")
        if outcome.problem:
            return outcome.problem
        if outcome.returncode != 0 and str(machine.home / name) not in outcome.text:
            return f"no path in the message: {outcome.text}"
        (machine.home / name).unlink(missing_ok=True)
        again = machine.run("true")
        return "" if again.returncode == 0 else f"the next run fails: {again.text}"


class UnknownRanks(Attack):
    """A program that connects to rank 0 and is no rank of the run."""

    actor, promise = "network neighbour", "the connection is closed, and the run is not affected"
    _HELLO: ClassVar = {"type": "Hello", "rank": 1}
    _LINES: ClassVar = {
        "nothing": b"",
        "no line": b"x" * 5_000_000,
        "binary": b"\xff\0\n",
        "nested": b"[" * 100_000 + b"\n",
        "no token": json.dumps(_HELLO).encode() + b"\n",
        "wrong token": json.dumps({**_HELLO, "token": "guess"}).encode() + b"\n",
        "empty token": json.dumps({**_HELLO, "token": ""}).encode() + b"\n",
        "token that is no text": json.dumps({**_HELLO, "token": "\ud800"}).encode() + b"\n",
        "token of another type": json.dumps({**_HELLO, "token": [1]}).encode() + b"\n",
        "another message": json.dumps({"type": "RankFailed", "cause": "x", "detail": ""}).encode() + b"\n",
        "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    }

    def members(self) -> Sequence[str]:
        return list(self._LINES)

    def setup(self, machine: Machine, member: str) -> None:
        pass

    def act(self, machine: Machine, member: str) -> str:
        with _HOOK:
            return self._connect(self._LINES[member])

    @staticmethod
    def _connect(data: bytes) -> str:
        events: list[RankEvent] = []
        failures: list[Any] = []
        previous, threading.excepthook = threading.excepthook, failures.append
        listener = socket.create_server(("127.0.0.1", 0))
        server = RankServer(listener, token=base64.b64encode(os.urandom(16)).decode(), nodes=2, put=events.append)
        answer = b""
        try:
            with socket.create_connection(listener.getsockname(), timeout=30) as connected:
                try:
                    connected.sendall(data)
                    connected.shutdown(socket.SHUT_WR)
                    answer = connected.recv(100)
                except ConnectionError:
                    # The connection was closed before all data had been read.
                    pass
        except TimeoutError:
            return "the connection is not closed"
        finally:
            server.close()
            threading.excepthook = previous
        return "" if (answer, events, failures) == (b"", [], []) else f"{answer!r}, {events}, {failures}"
