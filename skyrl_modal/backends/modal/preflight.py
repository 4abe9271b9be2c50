"""Checks before a run: whether Modal is reachable, and has the secrets and volumes that the run refers to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import modal
import modal.config
import modal.exception
from attrs import frozen

from skyrl_modal.backends.base import CheckResult
from skyrl_modal.backends.modal.checks import check_token, has_token
from skyrl_modal.backends.modal.errors import (
    backend_unavailable,
    error_text,
    is_account_refusal,
    translated_client_errors,
)
from skyrl_modal.backends.modal.event_loop import event_loop, wait_for_future
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.spec.volume import VolumeSpec

#: Seconds for Modal's first response. Modal's client alone retries for a minute.
FIRST_RESPONSE_TIMEOUT = 20.0
#: Seconds after a failure in which no further request is sent, so that a list of many runs waits only once.
FAILURE_VALIDITY = 10.0


@frozen
class RequiredObject:
    """An object on Modal that a run refers to by name.

    Attributes:
        field: The field that names it: ``"volumes"``, ``"secrets"``, ``"registry_secret"``, or a bucket's ``"secret"``.
        name: Its name.
        value: The reference.
        is_optional: Whether the run starts without it.
        keys: The variables that the secret of a bucket has.
        is_created: Whether it is created if it does not exist, when it is requested.
    """

    field: str
    name: str
    value: modal.Secret | modal.Volume
    is_optional: bool = False
    keys: Sequence[str] = ()
    is_created: bool = False

    @property
    def absence(self) -> str:
        """What the user should know if it is optional and does not exist."""
        return f"the optional secret {self.name} is left out: Modal has no secret of this name"


async def check_resources(required: Sequence[RequiredObject]) -> Sequence[RequiredObject]:
    """Check that Modal is reachable, accepts the token and has the named secrets and volumes.

    Returns:
        The optional objects that it does not have.

    Raises:
        BackendUnavailable: Modal does not respond.
        SpecError: It has no such secret or volume.
        modal.exception.AuthError: It refuses the token.
    """
    await _CONNECTION.check()
    exist = await asyncio.gather(*(_exists(item) for item in required))
    return [item for item, is_there in zip(required, exist, strict=True) if not is_there]


async def _exists(item: RequiredObject) -> bool:
    """Return whether Modal has an object. Raise SpecError if it does not, and the object is required."""
    try:
        await require(item)
    except SpecError as error:
        if item.is_optional and isinstance(error.__cause__, modal.exception.NotFoundError):
            return False
        raise
    return True


def connect() -> None:
    """Check that Modal is reachable and accepts the token, unless it has responded to this process before.

    Raises:
        BackendUnavailable: There is no token, Modal refuses it, or Modal does not respond in time.
    """
    check_token()
    with translated_client_errors():
        wait_for_future(asyncio.run_coroutine_threadsafe(_CONNECTION.check(again=False), event_loop()))


def diagnose() -> Iterator[CheckResult]:
    """Check that Modal responds, accepts the token, and does not refuse the account, for ``skyrl-modal doctor``.

    A spend limit that is reached is shown as soon as Modal has disabled the workspace: before, it refuses runs only.
    """
    if not has_token():
        return
    try:
        connect()
        with translated_client_errors(), contextlib.suppress(modal.exception.NotFoundError):
            modal.Volume.from_name(VolumeSpec().name).hydrate()
    except BackendUnavailable as error:
        yield CheckResult("modal account", False, error.reason, optional=True, is_required=True)
    else:
        yield CheckResult("modal account", True, "Modal accepts requests", optional=True)


class _Connection:
    """Whether Modal has responded to this process."""

    def __init__(self) -> None:
        self._client: modal.Client | None = None
        self._failure: BackendUnavailable | None = None
        self._failed_at = 0.0

    async def check(self, *, again: bool = True) -> None:
        """Wait for a response.

        Args:
            again: Whether to send a request also if this client has received a response before, or none a moment ago.

        Raises:
            BackendUnavailable: Modal does not respond in time.
            modal.exception.Error: It refuses the token, or the request.
        """
        if not again and self._failure is not None and time.monotonic() < self._failed_at + FAILURE_VALIDITY:
            raise BackendUnavailable("modal", self._failure.reason)
        try:
            async with asyncio.timeout(FIRST_RESPONSE_TIMEOUT):
                client = await modal.Client.from_env.aio()  # sends a request if it creates the client
                if client is self._client and not again:
                    return
                await client.hello.aio()  # type: ignore[no-untyped-call]  # the client has no types for it
        except TimeoutError:
            server = modal.config.config.get("server_url")
            reason = f"{server} did not respond within {FIRST_RESPONSE_TIMEOUT:g} s. Check the network connection"
            self._failure, self._failed_at = BackendUnavailable("modal", reason), time.monotonic()
            raise self._failure from None
        self._client = client


#: Modal's client too is shared by all users in this process.
_CONNECTION = _Connection()


async def require(item: RequiredObject) -> None:
    """Check that Modal has an object.

    Raises:
        SpecError: It does not.
        BackendUnavailable: It refuses all work of the account.
    """
    try:
        await item.value.hydrate.aio()
    except modal.exception.NotFoundError as error:
        raise SpecError(item.field, item.name, f"{_remedy(item)} ({error_text(error)})") from error
    except modal.exception.InvalidError as error:
        if is_account_refusal(error):
            raise backend_unavailable(error) from error
        raise SpecError(item.field, item.name, f"Modal refused it: {error_text(error)}") from error


def _remedy(item: RequiredObject) -> str:
    name = item.name
    if item.field == "volumes":
        return (
            f"Modal has no volume named {name!r}. Create it with `modal volume create {name}`, or remove the value of "
            "create_if_missing"
        )
    keys = "REGISTRY_USERNAME=... REGISTRY_PASSWORD=..." if item.field == "registry_secret" else "KEY=..."
    if item.keys:
        keys = " ".join(f"{key}=..." for key in item.keys)
        return f"the bucket requires a secret of this name on Modal: `modal secret create {name} {keys}`"
    return f"Modal has no secret named {name!r}. Create it with `modal secret create {name} {keys}`"
