"""The launcher: composes specs and checkout into a job, hands it to a backend, and follows the run."""

from __future__ import annotations

import functools
import posixpath
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen

from skyrl_modal.backends import Backend, VolumeEntry, backend_named
from skyrl_modal.errors import SpecError
from skyrl_modal.prepare.plan import Plan, make_plan
from skyrl_modal.prepare.restore import differences, launcher_fields
from skyrl_modal.prepare.staging import stage
from skyrl_modal.run.batch import run_many
from skyrl_modal.run.foreground import Interrupts, Output, catch_interrupts, follow, sink_for
from skyrl_modal.run.index import RunIndex
from skyrl_modal.run.handle import Reporter, Run, RunResult
from skyrl_modal.spec.run_spec import Declaration
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.views.text import Lines, Quiet


@frozen(kw_only=True)
class Launcher(Declaration):
    """Runs shell commands from a SkyRL checkout in a container, or on this machine through the same container code.

    It holds no state: it can be used many times, from many threads, and ``attrs.evolve`` makes variants.

    Attributes:
        image: Base image and layers (Modal).
        volumes: Persistent volumes; the first is ``$SKYRL_DATA``.
        mounts: Folders that go: the checkout, and any other of the caller's own.
        gpu: ``"A100-80GB:4"``, several in order of preference, or None. Locally there is what the machine has.
        nodes: Containers in the cluster; rank 0 runs the command, all of them are in its Ray.
        rdma: Whether the nodes are placed where Modal has its fast network for GPUs (nodes above 1).
        ray: The Ray that is up when the command starts; None for no Ray.
        timeout: For each attempt: seconds, a ``timedelta``, or text such as ``"90m"`` or ``"24h"``; kept as seconds.
        retries: Further attempts after a failure or a time-out.
        secrets: Names of variables taken from the environment or a .env file, or ``SecretSpec`` for Modal's own.
        env: Variables for the command.
        cpu: CPU cores (Modal).
        memory: MiB (Modal).
        region: Region (Modal).
        cloud: Cloud provider (Modal).
        workdir: Folder in the checkout that the command runs in; an absolute path may be in any mount or volume.
        app_name: Name of the Modal app.
        checkout: The SkyRL checkout; None: found from ``$SKYRL_REPO_ROOT``, the working directory, or the script.
        backend: ``"modal"``, ``"local"``, or an object with the Backend protocol.
        should_retry: Exit codes after which a further attempt is made, or a callable that says it of a code; None: all.
        grace: What a command that is stopped gets to save and end before KILL; kept as seconds.

    Raises:
        SpecError: A value is wrong; the error names it and says what would do.

    Example:
        >>> Launcher(backend="local", timeout="90m").timeout
        5400.0
    """

    # -- running -----------------------------------------------------------------------------------------------------

    def run(
        self, command: str | Sequence[str], *, check: bool = False, output: Output = None, quiet: bool = False
    ) -> RunResult:
        """Run a command to its end, with its output shown as it comes. The run ends when this process does.

        Args:
            command: A shell string, or a list of arguments, which is quoted.
            check: Whether to raise where the command did not succeed.
            output: A callable or a binary file that gets the output instead of standard output.
            quiet: Whether to leave out our own lines.

        Returns:
            How it ended, whatever that is.

        Raises:
            SpecError: Something that was declared is wrong; nothing was started.
            CheckoutNotFound: There is no checkout.
            BackendUnavailable: The backend cannot take a run.
            CommandFailed: With ``check``: the exit code was not 0. Likewise RunTimeout, RunCancelled and RunLost.
            KeyboardInterrupt: Ctrl-C was pressed; the run has been ended before this is raised.

        Example:
            >>> launcher = Launcher(backend="local", mounts=[], ray=None)  # doctest: +SKIP
            >>> launcher.run("exit 7").returncode  # doctest: +SKIP
            7
        """
        with catch_interrupts() as interrupts:
            result = self._run(command, output, quiet=quiet, interrupts=interrupts)
        interrupts.raise_if_pressed()
        if check:
            result.check_returncode()
        return result

    def _run(self, command: str | Sequence[str], output: Output, *, quiet: bool, interrupts: Interrupts) -> RunResult:
        reporter: Reporter = Quiet() if quiet else Lines()
        sink_for(output)  # a wrong one is refused while nothing has started
        run = self._start(command, owned=True, reporter=reporter, interrupts=interrupts)
        return follow(run, output, reporter, interrupts)

    def submit(self, command: str | Sequence[str]) -> Run:
        """Start a command that goes on when this process ends.

        Returns:
            A handle; ``Run.attach(run.id)`` gets it again in another process.

        Raises:
            SpecError: Something that was declared is wrong; nothing was started.
            CheckoutNotFound: There is no checkout.
            BackendUnavailable: The backend cannot take a run.
        """
        return self._start(command, owned=False, reporter=Quiet(), interrupts=Interrupts())

    def map(
        self,
        commands: Sequence[str | Sequence[str]],
        *,
        max_parallel: int | None = None,
        names: Sequence[str] | None = None,
        quiet: bool = False,
    ) -> list[RunResult]:
        """Run many commands, so many at once; one that fails does not stop the others.

        Args:
            commands: Each as ``run`` takes it. Their output is kept in each run's output.log.
            max_parallel: How many at the same time; None: 2 on this machine, 50 elsewhere.
            names: What the table calls them; None: the commands themselves.
            quiet: Whether to leave out the table.

        Returns:
            A result for each, in their order. One that could not be started has returncode 125 and says why.

        Raises:
            SpecError: Something that was declared is wrong; nothing was started.
            KeyboardInterrupt: Ctrl-C was pressed; all that ran has been ended before.

        Example:
            >>> launcher = Launcher(backend="local", ray=None)  # doctest: +SKIP
            >>> [result.returncode for result in launcher.map(["exit 1", "exit 2"])]  # doctest: +SKIP
            [1, 2]
        """
        texts = [_command_text(command) for command in commands]
        labels = list(names) if names is not None else texts
        if len(labels) != len(texts):
            raise SpecError("names", labels, f"give as many names as commands ({len(texts)})")
        if max_parallel is None:
            max_parallel = 2 if self._backend.name == "local" else 50
        if isinstance(max_parallel, bool) or not isinstance(max_parallel, int) or max_parallel < 1:
            raise SpecError("max_parallel", max_parallel, "give a whole number of at least 1, or None")
        if not texts:
            return []
        self.plan(texts[0])  # what is wrong with the launcher is said while nothing has started
        from skyrl_modal.views.table import LiveBoard, NoBoard  # rich is not needed for a single run

        with NoBoard() if quiet else LiveBoard(labels) as board:
            return run_many(
                texts,
                lambda text, reporter: self._start(text, owned=True, reporter=reporter, interrupts=Interrupts()),
                max_parallel=max_parallel,
                board=board,
                backend=self._backend.name,
            )

    async def arun(
        self, command: str | Sequence[str], *, check: bool = False, output: Output = None, quiet: bool = False
    ) -> RunResult:
        """Like ``run``, awaitable. A task that is cancelled cancels the run, and waits for its end."""
        import asyncio  # most callers await nothing, and it takes time to import

        interrupts = Interrupts()
        run = functools.partial(self._run, command, output, quiet=quiet, interrupts=interrupts)
        work = asyncio.ensure_future(asyncio.to_thread(_or_none, run))
        try:
            result = await asyncio.shield(work)
        except asyncio.CancelledError:
            interrupts.press()
            await work
            raise
        if result is None:  # cannot be: only the press above makes it so
            raise asyncio.CancelledError
        if check:
            result.check_returncode()
        return result

    async def asubmit(self, command: str | Sequence[str]) -> Run:
        """Like ``submit``, awaitable."""
        import asyncio

        return await asyncio.to_thread(self.submit, command)

    def plan(self, command: str | Sequence[str]) -> Plan:
        """What ``run`` would do. Nothing is started, copied or asked of a server.

        Raises:
            SpecError: Something that was declared is wrong.
            CheckoutNotFound: There is no checkout.
        """
        return make_plan(
            self, _command_text(command), self.backend if isinstance(self.backend, str) else self.backend.name
        )

    def _start(self, command: str | Sequence[str], *, owned: bool, reporter: Reporter, interrupts: Interrupts) -> Run:
        backend = self._backend
        plan = self.plan(command)
        title = f"run {plan.job.id}: {plan.job.command}"
        staged = stage(plan, backend, self.secrets, reporter, title=title, interrupts=interrupts)
        execution = backend.start(staged.job, staged.snapshots, staged.secrets, owned=owned)
        if not owned:
            execution.wait_started()
        run = Run(staged.job, backend.name, execution)
        run.remember()
        return run

    @classmethod
    def from_run(cls, run_id: str) -> tuple[Launcher, str]:
        """The launcher and the command of a run that was started from this machine.

        A warning says where today's checkout is not the one that ran.

        Args:
            run_id: The run's id.

        Raises:
            RunNotFound: No run has this id.
        """
        record = RunIndex().get(run_id)
        launcher = cls(**launcher_fields(record.job), backend=record.backend)
        for difference in differences(record.job):
            warnings.warn(f"run {run_id}: {difference}", stacklevel=2)
        return launcher, record.job.command

    # -- volumes -----------------------------------------------------------------------------------------------------

    def ls(self, path: str = "/root/data") -> list[VolumeEntry]:
        """List a folder of a volume.

        Args:
            path: Its path in the container.

        Raises:
            SpecError: The path is on none of this launcher's volumes.
            FileNotFoundError: It is not there.
        """
        volume, inside = self._on_volume(path)
        entries = self._backend.ls(volume.name, inside)
        return [
            VolumeEntry(posixpath.join(volume.mount_path, entry.path), entry.type, entry.size, entry.mtime)
            for entry in entries
        ]

    def pull(self, path: str, local: str | Path) -> Path:
        """Copy a file or folder from a volume to this machine.

        Args:
            path: Its path in the container.
            local: What it becomes here; put into it where it is a folder that is there.

        Returns:
            Where it is now.

        Raises:
            SpecError: The path is on none of this launcher's volumes.
            FileNotFoundError: It is not there.
        """
        volume, inside = self._on_volume(path)
        target = Path(local).expanduser()
        if target.is_dir() and inside:
            target = target / posixpath.basename(inside)
        self._backend.pull(volume.name, inside, target)
        return target

    def push(self, local: str | Path, path: str) -> None:
        """Copy a file or folder from this machine to a volume.

        Args:
            local: The file or folder.
            path: What it becomes in the container.

        Raises:
            SpecError: The path is on none of this launcher's volumes.
            FileNotFoundError: There is no such file or folder here.
        """
        volume, inside = self._on_volume(path)
        source = Path(local).expanduser()
        if not source.exists():
            raise FileNotFoundError(f"there is no {source}")
        self._backend.push(volume.name, source, inside)

    def _on_volume(self, path: str) -> tuple[VolumeSpec, str]:
        normal = posixpath.normpath(path)
        for volume in sorted(self.volumes, key=lambda volume: -len(volume.mount_path)):
            if normal == volume.mount_path or normal.startswith(f"{volume.mount_path}/"):
                return volume, normal.removeprefix(volume.mount_path).lstrip("/")
        known = ", ".join(volume.mount_path for volume in self.volumes) or "none"
        raise SpecError("path", path, f"it is on no volume of this launcher (volumes: {known})")

    # -- composing ---------------------------------------------------------------------------------------------------

    @property
    def _backend(self) -> Backend:
        return backend_named(self.backend) if isinstance(self.backend, str) else self.backend


def _or_none(run: Callable[[], RunResult]) -> RunResult | None:
    """The result; None where the run was interrupted before it started."""
    try:
        return run()
    except KeyboardInterrupt:
        return None


def _command_text(command: str | Sequence[str]) -> str:
    if not isinstance(command, str):
        words = list(command)
        if not all(isinstance(word, str) for word in words):
            raise SpecError("command", command, "give a shell string, or a list of strings")
        command = shlex.join(words)
    if not command.strip() or "\0" in command:
        raise SpecError("command", command, 'give a shell command, for example "python train.py"')
    return command
