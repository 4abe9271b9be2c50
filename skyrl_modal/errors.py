"""Exceptions of this library: one class for each error that a caller can act on.

* SkyRLModalError

  * SpecError (also a ValueError)
  * CheckoutNotFound
  * BackendUnavailable
  * RunError

    * CommandFailed
    * RunTimeout
    * RunCancelled
    * RunLost

  * RunNotFound (also a LookupError)

    * AmbiguousRun

  * RecordError
  * SnapshotError
  * PathNotFound (also a FileNotFoundError)
  * StorageError

Each exception has its facts as attributes and can be pickled, so that a driver can pass it between processes.
"""

# The classes are written without attrs, so that commands of the command line that need no attrs do not import it.

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: The text of the RuntimeError that ``Path.expanduser`` raises for a user without a home folder (CPython 3.11 to 3.13).
NO_HOME_TEXT = "Could not determine home directory."


class SkyRLModalError(Exception):
    """Base class of all exceptions that this library raises intentionally.

    Example:
        >>> issubclass(SpecError, SkyRLModalError)
        True
    """

    def _render_traceback_(self) -> list[str]:
        """Return the traceback that IPython shows, without the frames of this package and of IPython itself."""
        import os
        import traceback  # imported here: only IPython calls this

        package = os.path.dirname(os.path.abspath(__file__))
        # The standard library is between the notebook and this package too, such as contextlib and asyncio.
        library, others = os.path.dirname(os.path.abspath(traceback.__file__)), f"-packages{os.sep}"
        own = [
            frame
            for frame in traceback.extract_tb(self.__traceback__)
            if not frame.filename.startswith(package) and f"{os.sep}IPython{os.sep}" not in frame.filename
            if not frame.filename.startswith(library) or others in frame.filename
        ]
        return [*"".join(traceback.format_list(own)).splitlines(), f"{type(self).__name__}: {self}"]


class SpecError(SkyRLModalError, ValueError):
    r"""A declared value is invalid.

    Attributes:
        field: The name of the field, for example ``"timeout"``.
        value: The invalid value.
        remedy: What is wrong with it, and which values are valid.
        source: Where the value was set, with the value, such as ``$MODAL_GPU=A100:0``; empty if that is not known.
        shell_remedy: The remedy for a value that an option, an environment variable or a file has set; empty if it is
            the same.

    Example:
        >>> str(SpecError("timeout", "soon", 'pass seconds, a timedelta, or text such as "90m"'))
        'timeout=\'soon\': pass seconds, a timedelta, or text such as "90m"'
    """

    field: str
    value: object
    remedy: str
    source: str
    shell_remedy: str

    def __init__(self, field: str, value: object, remedy: str, source: str = "", *, shell_remedy: str = "") -> None:
        super().__init__(field, value, remedy)
        self.field = field
        self.value = value
        self.remedy = remedy
        self.source = source
        self.shell_remedy = shell_remedy

    def renamed(self, field: str) -> SpecError:
        """Return the same error about another field."""
        return SpecError(field, self.value, self.remedy, self.source, shell_remedy=self.shell_remedy)

    def located(self, source: str = "", *, field: str = "") -> SpecError:
        """Return the same error for the command line and for files.

        Args:
            source: Where the value was set; empty if that is not known.
            field: The field; empty for the same one.
        """
        return SpecError(field or self.field, self.value, self.shell_remedy or self.remedy, source or self.source)

    def __str__(self) -> str:
        if self.source:
            return f"{self.source}: {self.remedy}"
        return f"{self.field}={self.value!r}: {self.remedy}"


class CheckoutNotFound(SkyRLModalError):
    """No folder that contains ``skyrl-gym/`` was found.

    Attributes:
        searched: The searched places in order, as pairs of a description and a folder.
    """

    searched: Sequence[tuple[str, Path]]

    def __init__(self, searched: Sequence[tuple[str, Path]]) -> None:
        super().__init__(searched)
        self.searched = searched

    def __str__(self) -> str:
        places = "".join(f"\n  {why}: {folder} and the folders above it" for why, folder in self.searched)
        return (
            "no SkyRL checkout (a folder that contains skyrl-gym/) was found. Searched places:"
            f"{places}\nSet SKYRL_REPO_ROOT, pass --checkout or Launcher(checkout=...), or start from inside of it."
        )


class BackendUnavailable(SkyRLModalError):
    """The backend cannot execute a run now.

    Attributes:
        backend: Its name, for example ``"modal"``.
        reason: What is missing, and what to do about it.
    """

    backend: str
    reason: str

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(backend, reason)
        self.backend = backend
        self.reason = reason

    def __str__(self) -> str:
        return f"the {self.backend} backend is not available: {self.reason}"


class RunError(SkyRLModalError):
    """Base class of the exceptions about a run that did not succeed.

    Attributes:
        run_id: The run's id.
        detail: Description of the cause, as far as it is known.
        log_tail: The last lines of its output.
    """

    run_id: str
    detail: str
    log_tail: str

    def __init__(self, run_id: str, detail: str = "", log_tail: str = "") -> None:
        super().__init__(run_id, detail, log_tail)
        self.run_id = run_id
        self.detail = detail
        self.log_tail = log_tail

    def _headline(self) -> str:
        return f"run {self.run_id} failed"

    def __str__(self) -> str:
        text = self._headline()
        if self.detail:
            text += f": {self.detail}"
        if self.log_tail:
            text += "\nThe end of its output:\n" + "\n".join(f"  | {line}" for line in self.log_tail.splitlines())
        return text


class CommandFailed(RunError):
    """The command exited with a code other than 0, or could not be started.

    Attributes:
        returncode: The command's exit code; 128+N for signal N.

    Example:
        >>> import pickle
        >>> pickle.loads(pickle.dumps(CommandFailed("r1", log_tail="boom", returncode=7))).returncode
        7
    """

    returncode: int

    def __init__(self, run_id: str, detail: str = "", log_tail: str = "", returncode: int = 1) -> None:
        super().__init__(run_id, detail, log_tail)
        self.args += (returncode,)
        self.returncode = returncode

    def _headline(self) -> str:
        return f"run {self.run_id} ended with exit code {self.returncode}"


class RunTimeout(RunError):
    """The run was stopped at its time limit, or did not end within the time limit of ``wait``.

    Attributes:
        seconds: The exceeded limit.
        returncode: 124 if the run was stopped; None if only the wait ended.
    """

    seconds: float
    returncode: int | None

    def __init__(
        self, run_id: str, detail: str = "", log_tail: str = "", seconds: float = 0.0, returncode: int | None = None
    ) -> None:
        super().__init__(run_id, detail, log_tail)
        self.args += (seconds, returncode)
        self.seconds = seconds
        self.returncode = returncode

    def _headline(self) -> str:
        if self.returncode is None:
            return f"run {self.run_id} did not end within {self.seconds:,.10g} s and is still running"
        return f"run {self.run_id} was stopped at its time limit of {self.seconds:,.10g} s"


class RunCancelled(RunError):
    """The run was cancelled before its command exited.

    Attributes:
        returncode: The exit code of the stopped command.
    """

    returncode: int

    def __init__(self, run_id: str, detail: str = "", log_tail: str = "", returncode: int = 130) -> None:
        super().__init__(run_id, detail, log_tail)
        self.args += (returncode,)
        self.returncode = returncode

    def _headline(self) -> str:
        return f"run {self.run_id} was cancelled"


class RunLost(RunError):
    """The run ended without a result, because its container or its supervisor exited."""

    def _headline(self) -> str:
        return f"run {self.run_id} was lost"


class RunNotFound(SkyRLModalError, LookupError):
    """No run has this id.

    Attributes:
        run_id: The requested id.
        nearest: Known ids that are similar.
    """

    run_id: str
    nearest: Sequence[str]

    def __init__(self, run_id: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(run_id, nearest)
        self.run_id = run_id
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f" (similar: {', '.join(self.nearest)})" if self.nearest else ""
        return f"no run has the id {self.run_id!r}{hint}. `skyrl-modal ps` lists the runs known on this machine."


class AmbiguousRun(RunNotFound):
    """Several runs have an id that begins with the requested text, or a name that is equal to it.

    Attributes:
        run_id: The requested text.
        nearest: The ids of these runs, the newest first.
    """

    def __str__(self) -> str:
        return f"several runs match {self.run_id!r}: {', '.join(self.nearest)}. Pass one of these ids, or latest."


class RecordError(SkyRLModalError):
    """A record of a run cannot be read: it is damaged, or was written by a newer version.

    Attributes:
        path: The file that contains it.
        reason: Why it cannot be read.
    """

    path: str
    reason: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}"


class SnapshotError(SkyRLModalError):
    """A snapshot could not be taken, or was released before it was used.

    Attributes:
        path: The folder to copy, or the snapshot.
        reason: What went wrong, and what to do about it.
    """

    path: str
    reason: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class PathNotFound(SkyRLModalError, FileNotFoundError):
    """A file or folder does not exist: on a volume, or on this machine.

    Attributes:
        reason: What was searched, and where.

    Example:
        >>> isinstance(PathNotFound("volume skyrl-data has no ck"), FileNotFoundError)
        True
    """

    reason: str

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class StorageError(SkyRLModalError):
    """A file or folder of this machine cannot be read or written, or another request to the system failed.

    Attributes:
        path: The file or folder; empty if it is not known.
        reason: What the system reported.
    """

    path: str
    reason: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


@contextmanager
def translate_system_errors() -> Iterator[None]:
    """Convert exceptions of the operating system, which leave the block or the decorated function, to this package's.

    Public functions use it, so that a caller who handles ``SkyRLModalError`` handles a full disk, a removed folder and
    missing permissions too.

    Raises:
        PathNotFound: A file or folder does not exist.
        StorageError: Any other OSError; or a path begins with ``~`` and this user has no home folder.

    Example:
        >>> with translate_system_errors():
        ...     open("/dev/null/x")
        Traceback (most recent call last):
        skyrl_modal.errors.StorageError: /dev/null/x: Not a directory
    """
    try:
        yield
    except SkyRLModalError:
        raise
    except FileNotFoundError as error:
        raise PathNotFound(_describe_system_error(error)) from error
    except OSError as error:
        path = error.filename if error.strerror is not None else None
        reason = error.strerror or str(error) or type(error).__name__
        raise StorageError("" if path is None else _to_text(path), reason) from error
    except RuntimeError as error:
        if str(error) != NO_HOME_TEXT:
            raise
        raise StorageError("~", "this user has no home folder. Set the variable HOME") from error


def _describe_system_error(error: OSError) -> str:
    if error.filename is not None:
        return f"{_to_text(error.filename)} does not exist"
    # The system call getcwd(2) has no argument that the exception could name.
    return "the working directory does not exist any more" if error.errno is not None else str(error)


def _to_text(path: object) -> str:
    return path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)
