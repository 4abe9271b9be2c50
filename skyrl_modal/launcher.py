"""The launcher: what a user declares, and a method for each verb.

Importing this module loads what a declaration needs. What the methods do is in ``skyrl_modal.launching``, which they
import when they are called: it loads preparation, backends and runs, which takes as long as everything else together.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, Self

from skyrl_modal.backends import check_backend
from skyrl_modal.declaration import field, frozen
from skyrl_modal.errors import SpecError, translate_system_errors
from skyrl_modal.spec.option import option
from skyrl_modal.spec.run_spec import HARDWARE, RunSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from skyrl_modal.backends import Backend, VolumeEntry
    from skyrl_modal.declaration import Attribute
    from skyrl_modal.prepare.plan import Plan
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.output_sink import OutputTarget
    from skyrl_modal.run.result import RunResult
    from skyrl_modal.transfers.plan import TransferPlan
    from skyrl_modal.transfers.volume_files import DiskUsage

    #: What receives the events of a run.
    OnEvent = Callable[[Run, RunEvent], None]


@frozen(kw_only=True)
class Launcher(RunSpec):
    """Runs shell commands from a SkyRL checkout in a container, or on this machine through the same container code.

    A launcher has no state: it can be used several times and by several threads. ``attrs.evolve`` creates variants.

    Attributes:
        image: Base image and layers (Modal).
        volumes: Persistent volumes, and buckets of object stores. The first volume is ``$SKYRL_DATA``.
        mounts: Local folders to copy into the container: the checkout, and others.
        gpu: ``"A100-80GB:4"``, a list in order of preference, or None. The local backend uses the machine's GPUs.
        nodes: Number of containers in the cluster. Rank 0 runs the command; the Ray cluster includes all ranks.
        rdma: Whether to place the nodes where Modal provides RDMA between GPUs (with 2 nodes or more).
        ray: The Ray cluster that runs when the command starts; None for no Ray.
        timeout: Limit of each attempt: seconds, a ``timedelta``, or text such as ``"90m"`` or ``"24h"``. Stored as
            seconds.
        retries: Number of further attempts after a failure or a timeout.
        resume: ``"auto"`` to continue each attempt from the newest complete checkpoint; None to start the command as it
            is. An attempt that reached a new step is then repeated without using a retry.
        budget: Limit in US dollars for all attempts together; None for no limit. At the limit, the run is stopped with
            its grace period.
        rate: What one node costs in US dollars per hour, for a machine of your own or a negotiated price; None for
            Modal's rates. A local run costs nothing without it.
        stall: Time without output and without a new step after which an attempt is ended, with the same values as
            ``timeout``; None for no limit.
        start_deadline: Time from the submission in which the command has to start, with the same values as ``timeout``;
            None for no limit. It includes the wait for a container and the start of Ray.
        lease: How long a ``run`` may continue on Modal without a connection to this process, with the same values as
            ``timeout``: a laptop that sleeps, an outage of the network, or SIGKILL. Then it is stopped with its grace
            period.
        should_retry: Exit codes to retry after, or a predicate on the exit code; None retries after any failure.
        grace: Time between the first stop signal and SIGKILL. Stored as seconds.
        secrets: Names of variables that are read from the environment or a .env file, or ``SecretSpec`` for secrets
            that Modal stores and for optional secrets.
        env: Variables for the command.
        cpu: CPU cores (Modal).
        memory: Memory in MiB (Modal).
        region: Region (Modal).
        cloud: Cloud provider (Modal).
        workdir: Folder in the checkout that the command runs in. An absolute path may be in any mount or volume.
        app_name: Name of the Modal app.
        name: Name of the run, shown by ``skyrl-modal ps``; None for none.
        tags: Tags of the run, shown by ``skyrl-modal ps``.
        checkout: The SkyRL checkout; None to search from ``$SKYRL_REPO_ROOT``, the working directory, and the script.
        backend: ``"modal"``, ``"local"``, the name of an installed backend, or an object that implements
            ``skyrl_modal.backends.Backend``.

    Raises:
        SpecError: A value is invalid. The error contains the field, the value and valid alternatives.

    Example:
        >>> Launcher(backend="local", timeout="90m").timeout
        5400.0
    """

    backend: Literal["modal", "local"] | str | Backend = field(
        factory=lambda: os.environ.get("SKYRL_MODAL_BACKEND", "modal"),
        metadata=option(
            "modal, local, or the name of an installed backend.",
            default="modal",
            variable="SKYRL_MODAL_BACKEND",
            section=HARDWARE,
            metavar="NAME",
        ),
    )

    @backend.validator
    def _check_backend(self, attribute: Attribute[Any], value: object) -> None:
        check_backend(value)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        output: OutputTarget = None,
        quiet: bool = False,
        verbose: bool = False,
        strict: bool = False,
        fix: bool = False,
        on_event: OnEvent | None = None,
    ) -> RunResult:
        """Run a command to its end and show its output live. The run ends if this process exits.

        Args:
            command: A shell string, or a list of arguments, which are quoted.
            check: Whether to raise an exception if the command did not succeed.
            output: Callable or binary file that receives the output; standard output if None.
            quiet: Whether to suppress the launcher's own messages.
            verbose: Whether to write each phase before the command as a line, and all lines of the image's build,
                instead of one line that a terminal rewrites.
            strict: Whether to refuse a command with a finding that is an error.
            fix: Whether to append the ``key=value`` arguments that remove findings, as ``Plan.fixed_command``.
            on_event: Receives the run, and each of its messages and changes of state, and its result at the end:
                ``MessageEvent``, ``StateEvent`` (with the number of the attempt) or ``ResultEvent`` of
                ``skyrl_modal.protocol.events``. Called in the thread of ``run``; an exception stops the run, and is
                raised when it has ended.

        Returns:
            How the run ended, whether or not it succeeded.

        Raises:
            SpecError: A declared value is invalid, or a finding is an error with ``strict``. Nothing was started.
            CheckoutNotFound: There is no checkout.
            BackendUnavailable: The backend cannot execute a run.
            StorageError: A file or folder of this machine cannot be read or written. Nothing was started.
            CommandFailed: With ``check``: the exit code was not 0. Likewise RunTimeout, RunCancelled and RunLost.
            KeyboardInterrupt: Ctrl-C was pressed. The run has ended.

        Example:
            >>> launcher = Launcher(backend="local", mounts=[], ray=None)  # doctest: +SKIP
            >>> launcher.run("exit 7").returncode  # doctest: +SKIP
            7
        """
        from skyrl_modal import launching

        options = launching.StartOptions(strict=strict, fix=fix, verbose=verbose, on_event=on_event)
        result = launching.run(self, command, output, quiet=quiet, options=options)
        if check:
            result.check_returncode()
        return result

    def submit(self, command: str | Sequence[str], *, strict: bool = False, fix: bool = False) -> Run:
        """Start a command that continues after this process has exited.

        Args:
            command: A shell string, or a list of arguments, which are quoted.
            strict: As in ``run``.
            fix: As in ``run``.

        Returns:
            A handle of the run. ``Run.attach(run.id)`` returns it in another process.

        Raises:
            SpecError: A declared value is invalid, or a finding is an error with ``strict``. Nothing was started.
            CheckoutNotFound: There is no checkout.
            BackendUnavailable: The backend cannot execute a run.
            StorageError: A file or folder of this machine cannot be read or written. Nothing continues to run.
        """
        from skyrl_modal import launching

        return launching.submit(self, command, options=launching.StartOptions(strict=strict, fix=fix))

    def map(
        self,
        commands: Sequence[str | Sequence[str]],
        *,
        max_parallel: int | None = None,
        names: Sequence[str] | None = None,
        quiet: bool = False,
        strict: bool = False,
        fix: bool = False,
        on_event: OnEvent | None = None,
    ) -> list[RunResult]:
        """Run several commands, of which a limited number run at the same time. A failure does not stop the others.

        ``skyrl_modal.map`` accepts a launcher for each command.

        Args:
            commands: The commands, as ``run`` accepts them. Their output is stored in the output.log of each run.
            max_parallel: Number of commands that may run at the same time; None: 2 on this machine, 50 elsewhere.
            names: Names of the commands in the table; None: the commands themselves.
            quiet: Whether to suppress the table.
            strict: Whether to start nothing if a command has a finding that is an error.
            fix: As in ``run``, for each command.
            on_event: As in ``run``, for each command. Called in a thread for each run.

        Returns:
            A result for each command, in their order. A command that could not be started has the exit code 125.

        Raises:
            SpecError: A declared value is invalid, or a finding is an error with ``strict``. Nothing was started.
            KeyboardInterrupt: Ctrl-C was pressed. All runs have ended.

        Example:
            >>> launcher = Launcher(backend="local", ray=None)  # doctest: +SKIP
            >>> [result.returncode for result in launcher.map(["exit 1", "exit 2"])]  # doctest: +SKIP
            [1, 2]
        """
        from skyrl_modal import launching

        options = launching.StartOptions(strict=strict, fix=fix, on_event=on_event)
        pairs = [(self, command) for command in commands]
        return launching.map_runs(pairs, max_parallel=max_parallel, names=names, quiet=quiet, options=options)

    async def arun(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        output: OutputTarget = None,
        quiet: bool = False,
        strict: bool = False,
        fix: bool = False,
        on_event: OnEvent | None = None,
    ) -> RunResult:
        """Run a command like ``run``, awaitable. Cancelling the task cancels the run and waits for its end.

        Cancelling the task again kills the run, and does not wait. The run has a thread of its own, in which
        ``on_event`` and ``output`` are called: use ``loop.call_soon_threadsafe`` there.
        """
        from skyrl_modal import launching

        options = launching.StartOptions(strict=strict, fix=fix, on_event=on_event)
        result = await launching.arun(self, command, output, quiet=quiet, options=options)
        if check:
            result.check_returncode()
        return result

    async def asubmit(self, command: str | Sequence[str], *, strict: bool = False, fix: bool = False) -> Run:
        """Start a command like ``submit``, awaitable."""
        import asyncio  # imported here, since most callers do not use it

        return await asyncio.to_thread(self.submit, command, strict=strict, fix=fix)

    @translate_system_errors()
    def plan(self, command: str | Sequence[str], *, check: bool = False) -> Plan:
        """Return what ``run`` would do. Nothing is started or copied, and no server is contacted without ``check``.

        The checks are those of ``run``. A backend that is not available, such as Modal without a token, is a finding.

        A shell script that the command runs is executed in a sandbox in which it can start, change and contact nothing,
        to find what it starts.

        Args:
            command: A shell string, or a list of arguments, which are quoted.
            check: Whether to ask the backend too: whether it has the named volumes and secrets, whether data files and
                checkpoint folders exist on the volumes, which checkpoint folders other runs use, and how long a step of
                earlier runs took.

        Raises:
            SpecError: A declared value is invalid, or a secret is not defined.
            CheckoutNotFound: There is no checkout.
        """
        from skyrl_modal import launching

        return launching.plan(self, command, check=check)

    @classmethod
    @translate_system_errors()
    def from_config(cls, profile: str | None = None, **fields: Any) -> Self:
        """Return a launcher with the settings of configuration files, as ``skyrl-modal run`` uses them.

        ``Launcher(...)`` itself reads no file. The files are ``skyrl-modal.toml`` or ``[tool.skyrl-modal]`` of
        ``pyproject.toml``, in the working directory, the nearest folder above it, or the checkout; and the user's own.

        Args:
            profile: The profile to use; None for ``$SKYRL_MODAL_PROFILE``, or for none if that is not set.
            fields: Fields of the launcher, which replace those of the environment and of the files.

        Raises:
            SpecError: A value or a file is invalid, or no file has the profile. The error contains its source.

        Example:
            >>> Launcher.from_config(backend="local", timeout="90m").timeout
            5400.0
        """
        from skyrl_modal.config.resolve import resolve  # imported here, since most scripts use no file

        found = resolve(cls, {}, profile=profile, checkout=fields.get("checkout"))
        declared = {**found.launcher_fields(), **fields}
        try:
            return cls(**declared)
        except SpecError as error:
            raise (error if error.field in fields else found.located(error)) from None

    @classmethod
    @translate_system_errors()
    def from_run(cls, run_id: str) -> tuple[Launcher, str]:
        """Return the launcher and the command of a run that was started from this machine.

        Issue a warning if the files of the checkout or of another mount differ from those that the run used.

        Args:
            run_id: The run's id, the beginning of it, its name, or ``"latest"`` for the newest run.

        Raises:
            RunNotFound: No run has this id.
            AmbiguousRun: Several runs match.
            SpecError: The run's backend is not installed.
            RecordError: The run's record is damaged, or was written by a newer version.
            CheckoutNotFound: The run's checkout does not exist any more.
        """
        from skyrl_modal import launching

        return launching.from_run(cls, run_id)

    # -- files on volumes --------------------------------------------------------------------------------------------

    @translate_system_errors()
    def ls(self, path: str = "/root/data") -> list[VolumeEntry]:
        """List a folder of a volume, a file, or what matches a pattern.

        Args:
            path: Its path in the container. A pattern such as ``"/root/data/ckpts/global_step_*"`` stands for all files
                and folders that match it.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume.
            FileNotFoundError: There is no such path.
        """
        from skyrl_modal import volume_access

        return volume_access.list_path(self, path)

    @translate_system_errors()
    def pull(self, path: str | Sequence[str], local: str | Path, *, force: bool = False, quiet: bool = False) -> Path:
        """Copy files or folders from a volume to this machine, in one step: nothing incomplete remains at ``local``.

        ``local`` with a slash at its end, or an existing folder, receives the copy under its name. Otherwise it is the
        path of the copy. A folder is merged into an existing one of the same name. ``"/root/data/ckpts/"`` with a slash
        at its end stands for the content of the folder.

        Files that ``local`` has with the same size and time of the last change are not copied. If the transfer is
        killed, the next one between the same places continues it. Symbolic links at the target are not followed. Issue
        a warning about entries that are not copied: named pipes, sockets, devices, and links out of the folder.

        Args:
            path: One or several paths in the container, or patterns.
            local: The path of the copy, or the folder that receives it.
            force: Whether to copy files again that are unchanged.
            quiet: Whether to suppress the progress, which is displayed while a transfer takes longer than a moment.

        Returns:
            The path of the copy; of several, the folder that received them.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume; or ``local`` is a
                symbolic link to a folder.
            FileNotFoundError: There is no such path.
            StorageError: The copy cannot be written. The target is unchanged.
        """
        from skyrl_modal import volume_access
        from skyrl_modal.views.transfer_progress import TransferProgress

        progress = TransferProgress("pull", quiet=quiet)
        return volume_access.pull(self, path, local, force=force, progress=progress)

    @translate_system_errors()
    def push(
        self, local: str | Path | Sequence[str | Path], path: str, *, force: bool = False, quiet: bool = False
    ) -> None:
        """Copy files or folders from this machine to a volume, in one step: nothing incomplete remains at ``path``.

        The destination follows the rule of ``pull``: with a slash at its end, or as an existing folder, it receives the
        copy under its name. Otherwise it is the path of the copy. A folder is merged into an existing one of the same
        name.

        Files that a volume of the local backend has with the same size and time of the last change are not copied, and
        contents that Modal has are not sent again. If the transfer is killed, the next one between the same places
        continues it. Issue a warning about entries that are not copied: named pipes, sockets, devices, links out of the
        folder, and on Modal empty folders.

        Args:
            local: One or several files, folders or patterns.
            path: The path of the copy in the container, or the folder that receives it.
            force: Whether to copy files again that are unchanged.
            quiet: Whether to suppress the progress, which is displayed while a transfer takes longer than a moment.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume.
            FileNotFoundError: There is no such file or folder.
            StorageError: A file cannot be read, or the copy cannot be written. The target is unchanged.
        """
        from skyrl_modal import volume_access
        from skyrl_modal.views.transfer_progress import TransferProgress

        volume_access.push(self, local, path, force=force, progress=TransferProgress("push", quiet=quiet))

    @translate_system_errors()
    def plan_pull(self, path: str | Sequence[str], local: str | Path, *, force: bool = False) -> TransferPlan:
        """Return what ``pull`` would copy, and where to. Nothing is written.

        Args:
            path: As in ``pull``. So are the other arguments and the errors.
            local: As in ``pull``.
            force: As in ``pull``.
        """
        from skyrl_modal import volume_access

        return volume_access.plan_pull(self, path, local, force=force)

    @translate_system_errors()
    def plan_push(self, local: str | Path | Sequence[str | Path], path: str, *, force: bool = False) -> TransferPlan:
        """Return what ``push`` would copy, and where to. Nothing is written.

        Args:
            local: As in ``push``. So are the other arguments and the errors.
            path: As in ``push``.
            force: As in ``push``.
        """
        from skyrl_modal import volume_access

        return volume_access.plan_push(self, local, path, force=force)

    @translate_system_errors()
    def remove(self, path: str, *, recursive: bool = False, force: bool = False) -> list[str]:
        """Remove a file or folder of a volume. A symbolic link is removed, and not what it leads to.

        Args:
            path: Its path in the container, or a pattern.
            recursive: Whether to remove folders with their content.
            force: Whether to remove the content of a whole volume, or records of runs.

        Returns:
            The paths that were removed.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume; or it is a folder and
                ``recursive`` is False; or it contains records of runs and ``force`` is False. Nothing is removed.
            FileNotFoundError: There is no such path.
            StorageError: It cannot be removed.
        """
        from skyrl_modal import volume_access

        return volume_access.remove(self, path, recursive=recursive, force=force)

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the content of a file on a volume in pieces, without a copy on this machine.

        Args:
            path: Its path in the container.

        Raises:
            SpecError: The path is on none of this launcher's volumes, leads out of its volume, or is a folder.
            FileNotFoundError: There is no such path.
            StorageError: It is not a regular file, or cannot be read.

        Example:
            >>> b"".join(launcher.read("/root/data/metrics.json"))  # doctest: +SKIP
        """
        from skyrl_modal import volume_access

        with translate_system_errors():
            yield from volume_access.read(self, path)

    @translate_system_errors()
    def du(self, path: str = "/root/data") -> DiskUsage:
        """Return the size of a file or folder on a volume, and of each file and folder in it.

        Args:
            path: Its path in the container.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume.
            FileNotFoundError: There is no such path.
        """
        from skyrl_modal import volume_access

        return volume_access.measure(self, path)
