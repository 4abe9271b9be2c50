"""Conversion of the errors of Modal's client to this package's errors."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import modal
import modal.exception

from skyrl_modal.errors import BackendUnavailable, SkyRLModalError, SpecError, translate_system_errors
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.run_spec import RunSpec

#: Errors of Modal's client after which the same request may succeed: an outage of Modal's servers, a lost connection.
_TRANSIENT_CLIENT_ERRORS = (
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.ConnectionError,
    modal.exception.ResourceExhaustedError,
    modal.exception.LogsFetchError,
)
#: Errors after which a request that is not necessary is not repeated.
TRANSIENT_ERRORS = (*_TRANSIENT_CLIENT_ERRORS, OSError)
#: Packages that the client uses to send requests, all of whose errors are about the connection (1.6.4).
_CONNECTION_PACKAGES = ("aiohttp", "grpclib", "h2")
#: Errors of the system that are about the network, if they have no class of their own.
_NETWORK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN", "EADDRNOTAVAIL")
    if hasattr(errno, name)
)
#: The packages through which Modal's client sends requests (1.6.4).
_CLIENT_PACKAGES = ("modal", "grpclib", "aiohttp", "google", "synchronicity")
_OWN_PACKAGE = __name__.partition(".")[0]
#: Lines of a build's log that an error includes.
BUILD_LOG_LINES = 30
#: Seconds for fetching them.
BUILD_LOG_TIMEOUT = 15.0

#: Texts of ``modal.exception.RemoteError`` for a call that was cancelled, with where they were seen:
#: from Modal's servers (public logs of users; client 1.x), and from a server that sends no text (client 1.6.4).
_CANCELLATION_TEXTS = ("Function call was cancelled by user or a failure.", "")

#: Texts of errors that refuse all work of an account: "Workspace NAME has exceeded its spend limit" and "workspace NAME
#: is disabled" (public logs of users; client 1.x).
_ACCOUNT_REFUSAL = re.compile(r"\bspend(?:ing)? limit\b|\bworkspace\b.*\bis disabled\b", re.IGNORECASE | re.DOTALL)
#: What to do about it.
_ACCOUNT_REMEDY = (
    "Modal refuses all work of this account, and waiting does not help. Raise the spend limit, or add a payment "
    "method, in Modal's settings (https://modal.com/settings), then start the run again"
)


def error_text(error: BaseException) -> str:
    """Return the message of an error, or the name of its class if it has no message.

    Example:
        >>> error_text(TimeoutError()), error_text(ValueError("no such volume"))
        ('TimeoutError', 'no such volume')
    """
    try:
        return str(error).strip() or type(error).__name__
    except Exception:  # a class of the application whose __str__ fails
        return type(error).__name__


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error of ``FunctionCall.get`` means that the call was cancelled or that its app was stopped.

    Modal's client has no class for it, so the text decides. See ``_CANCELLATION_TEXTS`` for the versions. Callers
    prefer the result on the run's volume where there is one.

    Example:
        >>> is_cancellation(modal.exception.RemoteError("Function call was cancelled by user or a failure."))
        True
        >>> is_cancellation(modal.exception.RemoteError("Container terminated unexpectedly with exit code 137."))
        False
    """
    return type(error) is modal.exception.RemoteError and str(error).strip() in _CANCELLATION_TEXTS


def is_account_refusal(error: BaseException) -> bool:
    """Return whether Modal refuses all work of the account: its spend limit is reached, or its workspace is disabled.

    Modal's client has no class for it, so the text decides. See ``_ACCOUNT_REFUSAL`` for the versions.

    Example:
        >>> is_account_refusal(modal.exception.ResourceExhaustedError("Workspace x has exceeded its spend limit"))
        True
        >>> is_account_refusal(modal.exception.ResourceExhaustedError("rate limit exceeded"))
        False
    """
    return isinstance(error, modal.exception.Error) and _ACCOUNT_REFUSAL.search(error_text(error)) is not None


def account_refusal_text(error: BaseException) -> str:
    """Return the reason and the remedy of an account refusal."""
    return f"{error_text(error)}. {_ACCOUNT_REMEDY}"


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later: an outage of Modal's servers, or of the network.

    Errors of files on this machine, such as a full disk, are not transient.

    Example:
        >>> is_transient(modal.exception.ServiceError("unavailable")), is_transient(ConnectionResetError())
        (True, True)
        >>> is_transient(PermissionError()), is_transient(modal.exception.NotFoundError("no such volume"))
        (False, False)
    """
    if is_account_refusal(error):
        return False
    return isinstance(error, _TRANSIENT_CLIENT_ERRORS) or is_connection_error(error) or is_network_error(error)


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error is one of the packages by which Modal's client sends requests.

    Example:
        >>> is_connection_error(ConnectionResetError()), is_connection_error(modal.exception.NotFoundError(""))
        (False, False)
    """
    package = type(error).__module__.partition(".")[0]
    return package in _CONNECTION_PACKAGES


def is_network_error(error: BaseException) -> bool:
    """Return whether an error of the system is about the network, and not about a file.

    Example:
        >>> is_network_error(OSError(errno.ENETUNREACH, "")), is_network_error(OSError(errno.ENOSPC, ""))
        (True, False)
    """
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return True
    return isinstance(error, OSError) and error.errno in _NETWORK_ERRORS


async def translate_error(error: BaseException, job: Job, spec: RunSpec | None = None) -> BaseException:
    """Return this package's error for an error of Modal's client or of the system. Others are returned unchanged.

    Args:
        error: The error.
        job: The run that it occurred in.
        spec: What the user declared; None for a run that was attached to.
    """
    text = error_text(error)
    if isinstance(error, SkyRLModalError | asyncio.CancelledError):
        return error
    if is_account_refusal(error):
        return backend_unavailable(error)
    if isinstance(error, modal.exception.ImageBuildError):
        return SpecError("image", job.image, f"the image could not be built: {text}{await _build_log(error)}")
    if spec is not None and isinstance(error, modal.exception.NotFoundError):
        remedy = f"Modal did not find an object that the app refers to: {text}"
        return SpecError("app_name", spec.app_name, remedy)
    if spec is not None and isinstance(error, modal.exception.InvalidError):
        return SpecError("app_name", spec.app_name, f"Modal refused the app: {text}")
    if is_client_error(error):
        return backend_unavailable(error)
    try:  # a file that the client could not read
        with translate_system_errors():
            raise error
    except BaseException as translated:
        return translated


def is_client_error(error: BaseException) -> bool:
    """Return whether an error is one of Modal's client, of a package that it uses to send requests, or of the network.

    The client passes on some errors of these packages, for example those of aiohttp while it downloads a file (1.6.4).
    They are recognized by their module, since they are no dependencies of this package. Errors of Python's own classes
    are recognized by their traceback: for example, protobuf raises ValueError for a number that is too large.

    Example:
        >>> is_client_error(ConnectionResetError()), is_client_error(PermissionError())
        (True, False)
    """
    package = type(error).__module__.partition(".")[0]
    return package in _CLIENT_PACKAGES or is_network_error(error) or _is_raised_in_client(error)


def _is_raised_in_client(error: BaseException) -> bool:
    """Return whether an error was raised in a call of the client, which had not called this package again.

    Errors of files on this machine are excluded: they name the file, and are not about Modal.
    """
    if isinstance(error, OSError) or not isinstance(error, Exception):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
    callers = [name for name in packages if name == _OWN_PACKAGE or name in _CLIENT_PACKAGES]
    return bool(callers) and callers[-1] != _OWN_PACKAGE


@contextmanager
def suppressed_client_errors() -> Iterator[None]:
    """Ignore errors of Modal's client, of its requests and of the network, for a request that nothing depends on."""
    try:
        yield
    except Exception as error:
        if not is_client_error(error):
            raise


@contextmanager
def translated_client_errors() -> Iterator[None]:
    """Convert errors of Modal's client. Those of files on this machine are left through.

    Raises:
        BackendUnavailable: Modal cannot be reached, or did not fulfil the request.
    """
    try:
        yield
    except SkyRLModalError:
        raise
    except Exception as error:
        if not is_client_error(error):
            raise
        raise backend_unavailable(error) from error


def backend_unavailable(error: BaseException) -> BackendUnavailable:
    """Return this package's error for a request that Modal did not fulfil, whatever it was about."""
    if is_account_refusal(error):
        return BackendUnavailable("modal", account_refusal_text(error))
    text = error_text(error)
    if type(error).__module__ == "builtins" and not isinstance(error, OSError):
        return BackendUnavailable("modal", f"Modal's client failed: {type(error).__name__}: {text}")
    if isinstance(error, modal.exception.AuthError):
        return BackendUnavailable("modal", f"Modal refused the token ({text}). Run `modal setup`")
    if isinstance(error, modal.exception.ConnectionError | OSError):
        return BackendUnavailable("modal", f"Modal cannot be reached: {text}")
    return BackendUnavailable("modal", text)


async def _build_log(error: modal.exception.ImageBuildError) -> str:
    """Return the end of a failed build's log, formatted to follow a message; empty if it cannot be fetched."""
    try:
        async with asyncio.timeout(BUILD_LOG_TIMEOUT):
            logs = modal.Image.from_id(error.image_id).logs
            # Entries are pieces of text, some shorter than a line.
            text = "".join([entry.message async for entry in logs.tail.aio(BUILD_LOG_LINES * 10)])
    except Exception as failure:
        if not is_client_error(failure):
            raise
        return ""
    lines = text.splitlines()[-BUILD_LOG_LINES:]
    return "\nThe end of the build log:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
