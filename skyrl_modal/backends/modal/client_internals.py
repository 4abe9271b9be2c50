"""What transfers need of Modal's client and it has no supported access to (modal 1.6.4).

Each function also works with a client that does not have what it uses: with less progress, or with more to transfer.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import modal

#: What the name of the attribute begins with in which an object of the client has the one that does the work.
_INNER_PREFIX = "_sync_original_"
#: Blocks of 8 MiB that are sent at the same time to a volume of version 2.
_SENT_BLOCKS = 8


def _inner_attribute(wrapper: object) -> str | None:
    """Return the name of the attribute with the object that does the work; None if there is none."""
    return next((name for name in vars(wrapper) if name.startswith(_INNER_PREFIX)), None)


def prepare_upload(batch: object, report: Callable[..., Any]) -> None:
    """Let an upload report its progress, as ``modal volume put`` does, and send fewer blocks at the same time.

    The client sends 128 blocks at the same time, so that up to 1 GB has been sent, and no block is complete, if the
    upload is killed.

    Args:
        batch: What ``Volume.batch_upload`` yields.
        report: Called with ``name`` and ``size`` for a new file, and returns an id; then with the id as ``task_id`` or
            first argument, and ``advance`` or ``complete``.
    """
    attribute = _inner_attribute(batch)
    inner = getattr(batch, attribute) if attribute is not None else None
    for name, value in (("_progress_cb", report), ("_put_concurrency", _SENT_BLOCKS)):
        if hasattr(inner, name):
            setattr(inner, name, value)


class _RangeStub:
    """The RPCs of a client, of which the one that reads a file begins at an offset.

    Attributes:
        begin: The offset at which the response begins.
    """

    def __init__(self, stub: Any, offset: int) -> None:
        self.begin = 0
        self._stub = stub
        self._offset = offset

    async def VolumeGetFile2(self, request: Any, **options: Any) -> Any:  # the name of the RPC
        request.start = self._offset
        response = await self._stub.VolumeGetFile2(request, **options)
        self.begin = response.start
        return response


class _RangeClient:
    """A client with other RPCs."""

    def __init__(self, client: Any, stub: _RangeStub) -> None:
        self._client = client
        self._stub = stub

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def read_from(volume: modal.Volume, path: str, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield the content of a file of a volume from an offset on, which is a multiple of 8 MiB.

    The RPC has a range; ``Volume.read_file`` does not pass one. If the range has no effect, the beginning is
    transferred too, and left out here.

    Raises:
        FileNotFoundError: There is no such file.
    """
    stub = None
    if offset:
        volume, stub = _with_range(volume, offset)
    position = None
    async with aclosing(volume.read_file.aio(path)) as parts:
        async for part in parts:
            if position is None:
                position = stub.begin if stub is not None else 0
            new = part[max(0, offset - position) :]
            position += len(part)
            if new:
                yield new


def _with_range(volume: modal.Volume, offset: int) -> tuple[modal.Volume, _RangeStub | None]:
    attribute = _inner_attribute(volume)
    inner = getattr(volume, attribute) if attribute is not None else None
    client = getattr(inner, "_client", None)
    if attribute is None or client is None or not hasattr(client, "_stub"):
        return volume, None
    stub = _RangeStub(client._stub, offset)
    ranged_inner, ranged = copy.copy(inner), copy.copy(volume)
    ranged_inner._client = _RangeClient(client, stub)  # type: ignore[union-attr]  # it has a client
    vars(ranged)[attribute] = ranged_inner
    return ranged, stub
