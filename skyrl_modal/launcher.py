"""The launcher: what a user declares, and a method for each verb.

Importing this module loads what a declaration needs. What the methods do is in ``skyrl_modal.launching``, which they
import when they are called: it loads preparation, backends and runs, which takes as long as everything else together.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from skyrl_modal.backends import check_backend
from skyrl_modal.declaration import field, frozen
from skyrl_modal.errors import SpecError, translate_system_errors
from skyrl_modal.spec.option import option
from skyrl_modal.spec.run_spec import HARDWARE, RunSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from skyrl_modal.backends import Backend, VolumeEntry
    from skyrl_modal.declaration import Attribute
    from skyrl_modal.prepare.plan import Plan
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.output_sink import OutputTarget
    from skyrl_modal.run.result import RunResult

    #: What receives the events of a run.
    OnEvent = Callable[[Run, RunEvent], None]


@frozen(kw_only=True)
class Launcher(RunSpec):
    """Runs shell commands from a SkyRL checkout in a container, or on this machine through the same container code.

    A launcher has no state: it can be used several times and by several threads. ``attrs.evolve`` creates variants.

    Attributes:
        image: Base image and layers (Modal).
        volumes: Persistent volumes. The first one is ``$SKYRL_DATA``.
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

    backend: str | Backend = field(
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

        options = launching.StartOptions(strict=strict, fix=fix, on_event=on_event)
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
        return launching.map_commands(
            self, commands, max_parallel=max_parallel, names=names, quiet=quiet, options=options
        )

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
            check: Whether to ask the backend too: whether data files and checkpoint folders exist on the volumes, which
                checkpoint folders other runs use, and how long a step of earlier runs took.

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
            run_id: The run's id.

        Raises:
            RunNotFound: No run has this id.
            SpecError: The run's backend is not installed.
            RecordError: The run's record is damaged, or was written by a newer version.
            CheckoutNotFound: The run's checkout does not exist any more.
        """
        from skyrl_modal import launching

        return launching.from_run(cls, run_id)

    @translate_system_errors()
    def ls(self, path: str = "/root/data") -> list[VolumeEntry]:
        """List a folder of a volume.

        Args:
            path: Its path in the container.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume.
            FileNotFoundError: There is no such path.
        """
        from skyrl_modal import launching

        return launching.list_folder(self, path)

    @translate_system_errors()
    def pull(self, path: str, local: str | Path) -> Path:
        """Copy a file or folder from a volume to this machine, in one step: nothing incomplete remains at ``local``.

        A folder is merged into an existing one of the same name. Symbolic links at the target are not followed. Issue a
        warning about entries that are not copied: named pipes, sockets, devices, and links out of the folder.

        Args:
            path: Its path in the container.
            local: The path of the copy, or an existing folder that receives it.

        Returns:
            The path of the copy.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume; or ``local`` is a
                symbolic link to a folder.
            FileNotFoundError: There is no such path.
            StorageError: The copy cannot be written. The target is unchanged.
        """
        from skyrl_modal import launching

        return launching.pull(self, path, local)

    @translate_system_errors()
    def push(self, local: str | Path, path: str) -> None:
        """Copy a file or folder from this machine to a volume, in one step: nothing incomplete remains at ``path``.

        A folder is merged into an existing one. Issue a warning about entries that are not copied: named pipes,
        sockets, devices, links out of the folder, and on Modal empty folders.

        Args:
            local: The file or folder.
            path: The path of the copy in the container, or an existing folder that receives a file.

        Raises:
            SpecError: The path is on none of this launcher's volumes, or leads out of its volume.
            FileNotFoundError: There is no such file or folder.
            StorageError: A file cannot be read, or the copy cannot be written. The target is unchanged.
        """
        from skyrl_modal import launching

        launching.push(self, local, path)
