"""Everything this library raises: one class for each thing a caller can act on.

Each error keeps its facts as attributes and survives pickling, so that a driver may let it cross a process boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import define


class SkyRLModalError(Exception):
    """Base of every error that this library raises on purpose.

    Example:
        >>> issubclass(SpecError, SkyRLModalError)
        True
    """


@define(eq=False, slots=False, repr=False)
class SpecError(SkyRLModalError, ValueError):
    r"""A value that was declared is wrong.

    Attributes:
        field: The field that holds it, for example ``"timeout"``.
        value: The value as it was given.
        remedy: What is wrong with it and what would do.

    Example:
        >>> str(SpecError("timeout", "soon", 'give seconds, a timedelta, or text such as "90m"'))
        'timeout=\'soon\': give seconds, a timedelta, or text such as "90m"'
    """

    field: str
    value: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.remedy}"


@define(eq=False, slots=False, repr=False)
class CheckoutNotFound(SkyRLModalError):
    """No folder with ``skyrl-gym/`` was found.

    Attributes:
        searched: Each place looked at, in order, as ``(why, folder)``.
    """

    searched: Sequence[tuple[str, Path]]

    def __str__(self) -> str:
        places = "".join(f"\n  {why}: {folder} and the folders above it" for why, folder in self.searched)
        return (
            "no SkyRL checkout (a folder that holds skyrl-gym/) was found. Looked at:"
            f"{places}\nSet SKYRL_REPO_ROOT, or give Launcher(checkout=...), or run from inside the checkout."
        )


@define(eq=False, slots=False, repr=False)
class BackendUnavailable(SkyRLModalError):
    """The backend cannot take a run now.

    Attributes:
        backend: Its name, for example ``"modal"``.
        reason: What is missing and what to do about it.
    """

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"the {self.backend} backend is not available: {self.reason}"


@define(eq=False, slots=False, repr=False)
class RunError(SkyRLModalError):
    """Base of the errors that tell how one run ended.

    Attributes:
        run_id: The run.
        detail: What is known about the cause.
        log_tail: The last lines of its output.
    """

    run_id: str
    detail: str = ""
    log_tail: str = ""

    def _headline(self) -> str:
        return f"run {self.run_id} failed"

    def __str__(self) -> str:
        text = self._headline()
        if self.detail:
            text += f": {self.detail}"
        if self.log_tail:
            text += "\nThe end of its output:\n" + "\n".join(f"  | {line}" for line in self.log_tail.splitlines())
        return text


@define(eq=False, slots=False, repr=False)
class CommandFailed(RunError):
    """The command ended with an exit code other than 0, or could not be started.

    Attributes:
        returncode: The command's exit code; 128+N for signal N.

    Example:
        >>> import pickle
        >>> pickle.loads(pickle.dumps(CommandFailed("r1", log_tail="boom", returncode=7))).returncode
        7
    """

    returncode: int = 1

    def _headline(self) -> str:
        return f"run {self.run_id} ended with exit code {self.returncode}"


@define(eq=False, slots=False, repr=False)
class RunTimeout(RunError):
    """The run took longer than its ``timeout``, or ``wait`` longer than the one given to it.

    Attributes:
        seconds: The limit that was passed.
        returncode: 124 where the run itself was ended, None where only the waiting was.
    """

    seconds: float = 0.0
    returncode: int | None = None

    def _headline(self) -> str:
        if self.returncode is None:
            return f"run {self.run_id} has not ended within {self.seconds:g} s; it goes on"
        return f"run {self.run_id} was ended at its timeout of {self.seconds:g} s"


@define(eq=False, slots=False, repr=False)
class RunCancelled(RunError):
    """The run was cancelled before its command had ended by itself.

    Attributes:
        returncode: The exit code that the command was left with.
    """

    returncode: int = 130

    def _headline(self) -> str:
        return f"run {self.run_id} was cancelled"


@define(eq=False, slots=False, repr=False)
class RunLost(RunError):
    """The run ended without a result: its container or its supervisor died."""

    def _headline(self) -> str:
        return f"run {self.run_id} was lost"


@define(eq=False, slots=False, repr=False)
class RunNotFound(SkyRLModalError, LookupError):
    """No run has this id.

    Attributes:
        run_id: The id that was asked for.
        nearest: Known ids that resemble it.
    """

    run_id: str
    nearest: Sequence[str] = ()

    def __str__(self) -> str:
        hint = f"; the nearest are {', '.join(self.nearest)}" if self.nearest else ""
        return f"no run has the id {self.run_id!r}{hint}. `skyrl-modal ps` lists the runs known on this machine."


@define(eq=False, slots=False, repr=False)
class RecordError(SkyRLModalError):
    """A record of a run cannot be read: it is damaged, or was written by a newer version.

    Attributes:
        path: The file that holds it.
        reason: Why it cannot be read.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}"


@define(eq=False, slots=False, repr=False)
class SnapshotError(SkyRLModalError):
    """A snapshot could not be taken, or was released before it was used.

    Attributes:
        path: The folder that was to be copied, or the snapshot.
        reason: What went wrong and what to do about it.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
