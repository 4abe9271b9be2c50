"""One Ray node of the run's cluster. It is ended by process id; ``ray stop`` is never called."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from skyrl_modal.container.environment import gpus_per_node, ray_environment, with_ray_token
from skyrl_modal.container.events import ClusterChanged, ClusterNodes, RayEvent, RayNodeExited, ReadinessProbeFailed
from skyrl_modal.container.failures import Failure, StartError
from skyrl_modal.container.masked_logs import MaskedLog, make_private_folder, read_masked_end
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.process import ChildProcess
from skyrl_modal.container.process_tree import descendants, terminate_all
from skyrl_modal.container.ray_stop import was_terminated
from skyrl_modal.container.ray_watch import RayWatch
from skyrl_modal.dataclass import dataclass
from skyrl_modal.machine import RayInstallation, find_ray
from skyrl_modal.ports import DASHBOARD_PORT, claim_port
from skyrl_modal.protocol.codec import from_json
from skyrl_modal.protocol.exit_codes import exit_code_of
from skyrl_modal.protocol.job import Job, RayOptions
from skyrl_modal.protocol.kept_logs import RAY_START_LOG
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import FailureCause

_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 65536
#: Seconds for the import of the dashboard's dependencies.
_DASHBOARD_CHECK_TIMEOUT = 60.0
#: Imports what Ray's dashboard needs, with the list in Ray's own file (in Ray 2.48 to 2.60). Ray runs it too, and exits
#: if it fails (ray/_private/services.py, start_api_server). Ray itself is not imported, which would take a second.
_IMPORT_DASHBOARD = """
import importlib.util, pathlib, runpy
path = pathlib.Path(importlib.util.find_spec("ray").origin).parent / "dashboard" / "optional_deps.py"
if path.exists():
    runpy.run_path(str(path))
"""


@dataclass(frozen=True, slots=True)
class RayFolders:
    """Where Ray's files are.

    Attributes:
        session: Ray's temporary folder. It contains sockets, so its path must be short.
        logs: The folder in which the logs of this start are kept.
    """

    session: Path
    logs: Path

    @property
    def start_log(self) -> Path:
        """The file that receives what ``ray start`` prints."""
        return self.logs / RAY_START_LOG


def require_ray(options: RayOptions, env: Mapping[str, str]) -> RayInstallation:
    """Return the Ray on the PATH.

    Raises:
        StartError: There is none, or it cannot do what was requested. The message states the remedy.
    """
    ray = find_ray(env.get("PATH"))
    if ray is None:
        raise StartError(
            Failure(
                FailureCause.RAY_NOT_INSTALLED,
                "there is no `ray` program on the PATH. On this machine: pip install ray. In an "
                "image: add ray to ImageSpec(pip=[...]). Or run without Ray: Launcher(ray=None)",
            )
        )
    if options.dashboard and not ray.has_token_authentication:
        raise StartError(
            Failure(
                FailureCause.RAY_VERSION_MISMATCH,
                f"RaySpec(dashboard=True) requires Ray 2.52 or later, which protects the dashboard with a token; this "
                f'is Ray {ray.version}. On this machine: pip install --upgrade "ray[default]>=2.52". In an image: '
                "choose another one with ImageSpec(base=...)",
            )
        )
    return ray


def require_dashboard(ray: RayInstallation, env: Mapping[str, str]) -> None:
    """Check that Ray's dashboard is installed.

    Raises:
        StartError: It is not. The message states the remedy.
    """
    try:
        done = subprocess.run(
            [ray.python, "-c", _IMPORT_DASHBOARD],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(env),
            cwd="/",
            timeout=_DASHBOARD_CHECK_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # `ray start` will report it
    if done.returncode:
        last_line = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise StartError(
            Failure(
                FailureCause.DASHBOARD_NOT_INSTALLED,
                f'Ray\'s dashboard is not installed ({last_line}). On this machine: pip install "ray[default]". In an '
                "image: add it to ImageSpec(pip=[...]) with the version of the image's Ray. Or remove "
                "RaySpec(dashboard=True)",
            )
        )


class RayNode:
    """One node: ``ray start --block`` and, on rank 0, the probe that polls the cluster's nodes.

    Args:
        job: The run.
        config: This rank.
        ray: The Ray to use.
        env: The command's environment, from which Ray's is made.
        folders: Where Ray's files are.
        start: Number of this start of Ray, which its events carry.
        put: Receives the events, from threads.
        secrets: The values to mask in the logs that are kept.
        keep_logs: Copies what is new in Ray's logs.

    Attributes:
        start: Number of this start of Ray.
        port: Port of the head; 0 on other ranks.
        dashboard_port: Port of the dashboard; 0 if it does not run.
    """

    def __init__(
        self,
        job: Job,
        config: RankConfig,
        ray: RayInstallation,
        env: Mapping[str, str],
        folders: RayFolders,
        *,
        start: int,
        put: Callable[[RayEvent], None],
        secrets: SecretMask,
        keep_logs: Callable[[], None],
    ) -> None:
        self._options = options = job.ray or RayOptions()
        self._config = config
        self._workdir = job.workdir
        self._ray = ray
        self._gpus = gpus_per_node(job, config)
        # The token replaces what RaySpec(env=...) may contain: every process of the cluster must have the same one.
        self._env = with_ray_token(ray_environment(env, options, config), ray, config.tokens)
        self._folders = folders
        self._put = put
        self._secrets = secrets
        self._keep_logs = keep_logs
        self._log: MaskedLog | None = None
        self._claims: list[socket.socket] = []
        self._child: ChildProcess | None = None
        self._watch: RayWatch | None = None
        self._probe: subprocess.Popen[bytes] | None = None
        self._probe_reader: threading.Thread | None = None
        self.start = start
        self.port = self.dashboard_port = 0

    @property
    def address(self) -> str:
        """The head's address as HOST:PORT."""
        return f"{self._config.addresses[0]}:{self.port}"

    @property
    def returncode(self) -> int | None:
        """Exit code of ``ray start``, and so of the node; None while it runs."""
        status = None if self._child is None else self._child.status
        return None if status is None else exit_code_of(status)

    @property
    def exit_summary(self) -> str | None:
        """What of this node has exited, for messages; None while it runs."""
        if self._watch is not None and self._watch.exited is not None:
            return f"Ray's {self._watch.exited} exited"
        return None if self.returncode is None else f"Ray exited with code {self.returncode}"

    @property
    def children(self) -> set[int]:
        """The processes whose exit status this object collects."""
        found = {self._child.pid} if self._child is not None else set()
        return found | {self._probe.pid} if self._probe is not None else found

    @property
    def is_stopped(self) -> bool:
        """Whether ``ray stop`` ran here when a process of this node exited, or SIGTERM ended the raylet first."""
        watch = self._watch
        if watch is None or watch.is_stopped:
            return watch is not None
        return watch.exited == "raylet" and was_terminated(self._session_logs / "raylet.out")

    @property
    def processes(self) -> set[int]:
        """All living processes of this node."""
        found: set[int] = set()
        if self._child is not None and self._child.status is None:
            found |= {self._child.pid} | descendants(self._child.pid)
        if self._probe is not None and self._probe.returncode is None:
            found.add(self._probe.pid)
        return found

    def start_head(self) -> None:
        """Start the head and the readiness probe, and return immediately.

        Raises:
            StartError: The dashboard was requested and is not installed.
        """
        options = ["--include-dashboard=false"]
        if self._options.dashboard:
            require_dashboard(self._ray, self._env)
            self.dashboard_port = self._claim(DASHBOARD_PORT)
            options = ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        self.port = self._claim(self._options.port)
        log = self._open_log()
        self._start(log.writer, "--head", f"--port={self.port}", f"--temp-dir={self._folders.session}", *options)
        self._start_probe(log.writer)
        log.close_writer()

    def start_worker(self, head_address: str) -> None:
        """Start a node that joins the head, which may still be starting, and return immediately.

        Args:
            head_address: HOST:PORT.
        """
        log = self._open_log()
        self._start(log.writer, f"--address={head_address}")
        log.close_writer()

    def _claim(self, preferred: int) -> int:
        port, claim = claim_port(preferred)
        if claim is not None:
            self._claims.append(claim)
        return port

    def _open_log(self) -> MaskedLog:
        make_private_folder(self._folders.start_log.parent)
        self._log = MaskedLog(self._folders.start_log, self._secrets)
        return self._log

    def _start(self, output: int, *arguments: str) -> None:
        options, config = self._options, self._config
        argv = [self._ray.program, "start", *arguments, "--block", "--disable-usage-stats"]
        argv += [f"--node-ip-address={config.address}", f"--node-name={config.name}"]
        for option, value in (
            ("num-cpus", config.cpus if options.num_cpus is None else options.num_cpus),
            ("object-store-memory", options.object_store_memory or config.object_store_memory),
            ("num-gpus", self._gpus),
        ):
            if value is not None:
                argv.append(f"--{option}={value}")
        # Ray's workers have the working directory of `ray start`. SkyRL's own Modal script changes to the checkout
        # before it starts Ray, so relative paths of a config lead there.
        self._child = ChildProcess(
            argv,
            cwd=self._workdir,
            env=self._env,
            output=output,
            on_exit=lambda status: self._put(RayNodeExited(self.start, exit_code_of(status))),
        )
        names = ["raylet"] if config.rank else ["gcs_server", "raylet"]
        self._watch = RayWatch(self._child.pid, names, self._child.kill_group)

    def _start_probe(self, errors: int) -> None:
        probe = Path(__file__).with_name("ray_probe.py")
        arguments = [self._config.addresses[0], str(self.port), str(self._config.nodes)]
        self._probe = subprocess.Popen(
            [self._ray.python, str(probe), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=self._env,
            cwd="/",
            start_new_session=True,
        )
        reader = threading.Thread(target=self._read_probe, args=(self._probe,), name="ray-probe", daemon=True)
        self._probe_reader = reader
        reader.start()

    def _read_probe(self, probe: subprocess.Popen[bytes]) -> None:
        for line in probe.stdout or ():
            self._put(ClusterChanged(self.start, from_json(ClusterNodes, line)))
        if probe.wait():
            self._put(ReadinessProbeFailed(self.start, exit_code_of(probe.returncode)))

    def log_tail(self) -> str:
        """Return the last lines that ``ray start`` printed, and those of Ray's error logs, masked."""
        if self._log is not None:
            self._log.write_available()
        parts = []
        for path in (self._folders.start_log, *sorted(self._session_logs.glob("*.err"))):
            lines = _last_lines(path, self._secrets)
            if lines:
                parts.append(f"{path.name}:\n" + "\n".join(f"  {line}" for line in lines))
        return "\n".join(parts) or "(Ray printed nothing)"

    def end(self) -> None:
        """End all processes of this node and keep Ray's logs."""
        if self._probe is not None:
            if self._probe.stdin is not None:
                self._probe.stdin.close()  # the probe exits
            if self._probe_reader is not None:
                self._probe_reader.join()
        if self._watch is not None:
            self._watch.close()
        if self._child is not None:
            # If `ray start` was killed, the others are not its descendants any more.
            self._child.kill_group()
            # Without a grace period: the command has ended, and Ray's own shutdown takes seconds. The raylet and the
            # workers have sessions of their own, but all of them are descendants of `ray start`.
            terminate_all(lambda: self.processes, grace=0)
            self._child.join()
        if self._log is not None:
            self._log.join()
        for claim in self._claims:
            claim.close()
        self._keep_logs()

    @property
    def _session_logs(self) -> Path:
        return self._folders.session / "session_latest" / "logs"


def _last_lines(path: Path, secrets: SecretMask) -> list[str]:
    """Return the last lines of a log of Ray's, masked; none if it cannot be read."""
    try:
        lines = read_masked_end(path, _LOG_TAIL_BYTES, secrets).splitlines()
    except OSError:
        return []
    # The raylet ends its log with pages of counters ("[state-dump]", in Ray 2.48 to 2.60), which explain nothing.
    return [line for line in lines if line.strip() and "[state-dump]" not in line][-_LOG_TAIL_LINES:]
