"""What Modal's client raises, as errors of ours with Modal's words in them."""

from __future__ import annotations

import asyncio

import modal
import modal.exception

from skyrl_modal.errors import BackendUnavailable, SkyRLModalError, SpecError
from skyrl_modal.protocol.job import Job

#: What passes by itself: an outage of Modal's, a dropped connection.
TRANSIENT = (
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.ConnectionError,
    modal.exception.ResourceExhaustedError,
    modal.exception.LogsFetchError,
    OSError,
)
#: Lines of a build's log that an error carries, and seconds that fetching them may take.
BUILD_LINES = 30
BUILD_LOG_PATIENCE = 15.0


def words_of(error: BaseException) -> str:
    """What the error says; its name where it says nothing."""
    return str(error).strip() or type(error).__name__


async def translated(error: BaseException, job: Job) -> BaseException:
    """The error of ours that an error of Modal's client is for this job; what is not Modal's stays as it is."""
    words = words_of(error)
    if isinstance(error, SkyRLModalError | asyncio.CancelledError):
        return error
    if isinstance(error, modal.exception.AuthError):
        return BackendUnavailable("modal", f"the token was refused ({words}): run `modal setup`")
    if isinstance(error, modal.exception.ImageBuildError):
        return SpecError("image", job.image["base"], f"it could not be built: {words}{await build_log(error)}")
    if isinstance(error, modal.exception.NotFoundError):
        return SpecError("launcher", job.app_name, f"Modal lacks something that it needs: {words}")
    if isinstance(error, modal.exception.InvalidError):
        field, value = ("gpu", list(job.gpu)) if "gpu" in words.lower() else ("launcher", job.app_name)
        return SpecError(field, value, f"Modal refuses it: {words}")
    if isinstance(error, modal.exception.ConnectionError | OSError):
        return BackendUnavailable("modal", f"it cannot be reached: {words}")
    if isinstance(error, modal.exception.Error):
        return BackendUnavailable("modal", words)
    return error


async def build_log(error: modal.exception.ImageBuildError) -> str:
    """The end of a failed build's log, ready to stand behind a message; empty where it cannot be had."""
    try:
        async with asyncio.timeout(BUILD_LOG_PATIENCE):
            logs = modal.Image.from_id(error.image_id).logs
            # Entries are chunks, some shorter than a line.
            text = "".join([entry.message async for entry in logs.tail.aio(BUILD_LINES * 10)])
    except (modal.exception.Error, OSError, TimeoutError):
        return ""
    lines = text.splitlines()[-BUILD_LINES:]
    return "\nThe end of its build log:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
