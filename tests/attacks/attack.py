"""What an attack is, and the machine that it runs on: user folders, a checkout and volumes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds after which a command counts as blocked. An ordinary one takes less than two.
TIMEOUT = 60.0
#: Address space of a command. A command that reads a device or a huge file without a limit exceeds it.
MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        returncode: Its exit code; None if it was killed at the time limit.
        text: Its stdout and stderr.
    """

    returncode: int | None
    text: str

    @property
    def problem(self) -> str:
        """Why no command may end like this; empty if it may."""
        if self.returncode is None:
            return f"blocked for {TIMEOUT:.0f} s"
        if "Traceback (most recent call last)" in self.text:
            return f"a traceback: {self.text[-300:]}"
        if self.returncode < 0 or "MemoryError" in self.text:
            return f"killed, or out of memory: {self.returncode}"
        return ""


class Machine:
    """The user's machine in a folder of its own.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.checkout = folder / "SkyRL"
        (self.checkout / "skyrl-gym").mkdir(parents=True)
        (self.checkout / "skyrl-gym" / "__init__.py").write_text("")
        (self.checkout / "train.py").write_text("print('training')\n")
        self.home.mkdir()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MODAL_", "SKYRL_"))},
            "HOME": str(self.home),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "SKYRL_MODAL_BACKEND": "local",
            "COLUMNS": "1000",
        }

    def git(self, *arguments: str) -> None:
        """Run git in the checkout."""
        names = {f"GIT_{role}_{part}": "a@b.invalid" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        subprocess.run(
            ["git", *arguments], cwd=self.checkout, env={**self.env, **names}, check=True, capture_output=True
        )

    def commit(self) -> None:
        """Make the checkout a repository with one commit."""
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-qm", "first")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of the package, with a limit of its memory."""
        limit = f'ulimit -v {MEMORY_BYTES >> 10} 2>/dev/null; exec "$@"'
        return ["/bin/sh", "-c", limit, "sh", sys.executable, "-m", "skyrl_modal", *arguments]

    def call(self, *arguments: str, env: Mapping[str, str] | None = None, umask: int = -1) -> Outcome:
        """Run a command of the package in the checkout."""
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.checkout, env={**self.env, **(env or {})}, umask=umask,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Outcome(None, output.decode("utf-8", "replace"))
        return Outcome(process.returncode, output.decode("utf-8", "replace"))

    def run(self, command: str, *options: str, env: Mapping[str, str] | None = None) -> Outcome:
        """Run a command without Ray on the local backend."""
        return self.call("run", "--no-ray", "--gpu", "none", *options, command, env=env)

    def plan(self, *options: str) -> Outcome:
        """Plan a run."""
        return self.call("plan", "--no-ray", "--gpu", "none", *options, "true")

    @property
    def volume(self) -> Path:
        """The folder of the volume; a run creates it."""
        return self.home / "data" / "skyrl_modal" / "volumes" / "skyrl-data"

    def run_folders(self) -> list[Path]:
        """Return the folders of the runs on the volume, the oldest first."""
        runs = self.volume / ".skyrl_modal" / "runs"
        return sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime_ns) if runs.is_dir() else []

    def kill_when(self, arguments: Sequence[str], condition: Path) -> None:
        """Start a command and kill it when a folder contains a file, or when it ends."""
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.checkout, env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if condition.is_dir() and any(condition.iterdir()):
                break
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Attack(ABC):
    """One attack with several members, each of which is tried on a new machine.

    Attributes:
        actor: Who attacks.
        promise: What is expected.
        needs_root: Whether the attack needs a second user, or a file system of its own.
    """

    actor: str
    promise: str
    needs_root = False

    @abstractmethod
    def members(self) -> Sequence[str]:
        """Return the names of the members."""

    @abstractmethod
    def setup(self, machine: Machine, member: str) -> None:
        """Prepare the machine."""

    @abstractmethod
    def act(self, machine: Machine, member: str) -> str:
        """Do what the user does, and return why the promise was not kept; empty if it was kept."""

    @property
    def name(self) -> str:
        """The name of the attack: the first line of its docstring."""
        return (type(self).__doc__ or "").split("\n")[0].rstrip(".")
