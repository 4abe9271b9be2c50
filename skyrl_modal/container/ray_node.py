"""One node of the run's own Ray: started, watched, and ended by pid. ``ray stop`` is never called."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.container.process import Child, descendants, end_all, returncode_of
from skyrl_modal.protocol.rank_config import Place

#: Ray's own default for its dashboard; where it is taken, a free port is used.
DASHBOARD_PORT = 8265


class RayError(Exception):
    """Ray did not come up, or went away; the text says which, and ends with Ray's last words."""


def claim_port(wanted: int) -> tuple[int, socket.socket | None]:
    """A port of this machine: the wanted one, or a free one where somebody else listens there or was given it.

    Two runs that start at the same moment would both find a port free before either listens on it. So each claims it
    first by a name in Linux's abstract socket namespace, which ends with the process that holds it.

    Returns:
        The port and the claim, to be kept open as long as the port is used (None where the system has no such names).
    """
    candidate = wanted
    while True:
        claim = None
        if sys.platform == "linux":
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0skyrl_modal-port-{candidate}")
            except OSError:
                claim.close()
                candidate = _free_port()
                continue
        if _is_free(candidate):
            return candidate, claim
        if claim is not None:
            claim.close()
        candidate = _free_port()


def claim_turns(wanted: int) -> list[socket.socket] | None:
    """Turns to start nodes of Ray on this machine, of which there are as many as CPUs, and two at least.

    A node that is not up after 30 s ends itself (ray/_private/node.py), and many that start at once take that long.

    Args:
        wanted: How many nodes start; more than there are turns get all of them.

    Returns:
        The claims, to be closed once the nodes are up; None where others have their turn now.
    """
    if sys.platform != "linux":
        return []
    total = max(2, os.cpu_count() or 1)
    claims: list[socket.socket] = []
    for number in range(total):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0skyrl_modal-turn-{number}")
        except OSError:
            claim.close()
            continue
        claims.append(claim)
        if len(claims) == min(wanted, total):
            return claims
    for claim in claims:
        claim.close()
    return None


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port


def _interpreter_of(script: str) -> str:
    """The Python that a console script runs on, from its first line; this one's where that does not say."""
    with open(script, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!"):
        words = first[2:].decode("utf-8", "surrogateescape").split()
        if words and "python" in Path(words[0]).name and os.access(words[0], os.X_OK):
            return words[0]
    beside = Path(script).parent / "python"
    return str(beside) if beside.exists() else sys.executable


class RayNode:
    """One node of the run's cluster: its ``ray start --block`` and, on the head, the probe that asks for readiness.

    Args:
        spec: The job's ``ray`` part.
        place: Where this node stands in the cluster.
        gpus: GPUs that it may hand out; None for all that Ray finds.
        env: The environment for Ray's processes.
        temp_dir: Folder for Ray's session; short, since sockets lie in it.
        log: File that gets what Ray prints.
        on_event: Told from threads: ``("ray-nodes", facts)`` as the cluster grows, ``("ray-ended", returncode)``,
            ``("ray-probe-failed", returncode)``.

    Raises:
        RayError: There is no ``ray`` on the PATH.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        place: Place,
        *,
        gpus: int | None,
        env: Mapping[str, str],
        temp_dir: Path,
        log: Path,
        on_event: Callable[[str, Any], None],
    ) -> None:
        self._spec = spec
        self._place = place
        self._gpus = gpus
        self._env = dict(env)
        self._temp_dir = temp_dir
        self._log = log
        self._on_event = on_event
        self._claims: list[socket.socket] = []
        self._child: Child | None = None
        self._probe: subprocess.Popen[bytes] | None = None
        self._probe_reader: threading.Thread | None = None
        found = shutil.which("ray", path=env.get("PATH"))
        if found is None:
            raise RayError(
                'there is no `ray` on the PATH. On this machine: pip install "skyrl-modal[local]"; in an image: '
                "add ray to ImageSpec(pip=[...]); or run without Ray: Launcher(ray=None)"
            )
        self._ray = found
        self.port = self.dashboard_port = 0

    @property
    def address(self) -> str:
        """The head's address as HOST:PORT."""
        return f"{self._place.addresses[0]}:{self.port}"

    @property
    def has_ended(self) -> bool:
        """Whether ``ray start`` has ended, and the node with it."""
        return self._child is None or self._child.returncode is not None

    @property
    def children(self) -> set[int]:
        """The processes whose exit status is waited for here."""
        found = {self._child.pid} if self._child is not None else set()
        return found | {self._probe.pid} if self._probe is not None else found

    @property
    def pids(self) -> set[int]:
        """The processes of this node."""
        found: set[int] = set()
        if self._child is not None and self._child.returncode is None:
            found |= {self._child.pid} | descendants(self._child.pid)
        if self._probe is not None and self._probe.returncode is None:
            found.add(self._probe.pid)
        return found

    def start_head(self) -> None:
        """Start the head, and the question which nodes are there. Returns at once."""
        self.port = self._claim(int(self._spec["port"]))
        options = ["--include-dashboard=false"]
        if self._spec["dashboard"]:
            self.dashboard_port = self._claim(DASHBOARD_PORT)
            options = ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        self._start("--head", f"--port={self.port}", f"--temp-dir={self._temp_dir}", *options)
        host, nodes = self._place.addresses[0], self._place.nodes
        with open(self._log, "ab") as log:
            self._probe = subprocess.Popen(
                [_interpreter_of(self._ray), str(Path(__file__).with_name("ray_probe.py")), host, str(self.port),
                 str(nodes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                cwd="/",
                start_new_session=True,
            )  # fmt: skip
        self._probe_reader = threading.Thread(target=self._read_probe, name="ray-probe", daemon=True)
        self._probe_reader.start()

    def start_worker(self, head: str) -> None:
        """Start a node that joins the head at HOST:PORT, also where that one only comes up. Returns at once."""
        self._start(f"--address={head}")

    def _claim(self, wanted: int) -> int:
        port, claim = claim_port(wanted)
        if claim is not None:
            self._claims.append(claim)
        return port

    def _start(self, *arguments: str) -> None:
        spec, place = self._spec, self._place
        argv = [self._ray, "start", *arguments, "--block", "--disable-usage-stats"]
        argv += [f"--node-ip-address={place.address}", f"--node-name={place.name}"]
        for option, value in (
            ("num-cpus", place.cpus if spec.get("num_cpus") is None else spec["num_cpus"]),
            ("object-store-memory", spec.get("object_store_memory") or place.object_store_memory),
            ("num-gpus", self._gpus),
        ):
            if value is not None:
                argv.append(f"--{option}={int(value)}")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self._child = Child(
                argv,
                cwd=None,
                env=self._env,
                output=log.fileno(),
                on_exit=lambda status: self._on_event("ray-ended", returncode_of(status)),
            )

    def _read_probe(self) -> None:
        probe = self._probe
        if probe is None or probe.stdout is None:
            return
        for line in probe.stdout:
            self._on_event("ray-nodes", json.loads(line))
        if probe.wait():
            self._on_event("ray-probe-failed", probe.returncode)

    def last_words(self, lines: int = 12) -> str:
        """The end of what Ray printed, and of its own error logs."""
        parts = []
        for path in (self._log, *sorted((self._temp_dir / "session_latest" / "logs").glob("*.err"))):
            try:
                data = path.read_bytes()[-65536:]
            except OSError:
                continue
            text = data.decode("utf-8", "replace").splitlines()
            # The raylet's dumps of its own counters would push out what was said before them.
            kept = [line for line in text if line.strip() and "[state-dump]" not in line][-lines:]
            if kept:
                parts.append(f"{path.name}:\n" + "\n".join(f"  {line}" for line in kept))
        return "\n".join(parts) or "(Ray printed nothing)"

    def end(self, say: Callable[[str], None]) -> None:
        """End this node's processes, and keep its logs beside what it printed; nothing else of it is left.

        Args:
            say: Takes a line of ours where the logs cannot be kept.
        """
        if self._probe is not None:
            if self._probe.stdin is not None:
                self._probe.stdin.close()
            if self._probe_reader is not None:
                self._probe_reader.join()
        if self._child is not None:
            # At once: the command has ended, so nothing is left to drain, and Ray's own way down takes seconds. The
            # raylet and the workers are in sessions of their own, but all of them are below the one process.
            end_all(lambda: self.pids, grace=0)
            self._child.join()
        for claim in self._claims:
            claim.close()
        source = self._temp_dir / "session_latest" / "logs"
        try:
            if source.is_dir():
                shutil.copytree(
                    source, self._log.parent, symlinks=True, dirs_exist_ok=True, ignore_dangling_symlinks=True
                )
        except (OSError, shutil.Error) as error:
            say(f"Ray's logs could not be kept whole: {error}")
