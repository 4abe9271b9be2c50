"""Named Dicts: small values that clients and containers share.

Assumptions about Modal: keys and values are bytes that the client has serialized. An update with `if_not_exists`
changes nothing if the key exists, and reports whether it was created. Entries expire after 7 days, which is not
implemented here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import new_id
from .rpc import Context, Service


@attrs.define(eq=False)
class Dict:
    """A Dict, and its serialized entries."""

    name: str
    id: str = attrs.field(factory=lambda: new_id("di"))
    entries: dict[bytes, bytes] = attrs.field(factory=dict)


class Dicts(Service):
    """RPCs about Dicts."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.dicts: dict[str, Dict] = {}
        self.names: dict[tuple[str, str], str] = {}

    def _get(self, dict_id: str) -> Dict:
        if dict_id not in self.dicts:
            raise GRPCError(Status.NOT_FOUND, f"Dict {dict_id!r} not found.")
        return self.dicts[dict_id]

    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest, context: Context
    ) -> api_pb2.DictGetOrCreateResponse:
        key = (request.environment_name or "main", request.deployment_name)
        if key not in self.names:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"Dict {key[1]!r} not found in environment {key[0]!r}.")
            created = Dict(request.deployment_name)
            self.dicts[created.id], self.names[key] = created, created.id
        metadata = api_pb2.DictMetadata(name=request.deployment_name)
        return api_pb2.DictGetOrCreateResponse(dict_id=self.names[key], metadata=metadata)

    async def DictUpdate(self, request: api_pb2.DictUpdateRequest, context: Context) -> api_pb2.DictUpdateResponse:
        entries, is_created = self._get(request.dict_id).entries, False
        for update in request.updates:
            if request.if_not_exists and update.key in entries:
                continue
            is_created = is_created or update.key not in entries
            entries[update.key] = update.value
        return api_pb2.DictUpdateResponse(created=is_created)

    async def DictGet(self, request: api_pb2.DictGetRequest, context: Context) -> api_pb2.DictGetResponse:
        value = self._get(request.dict_id).entries.get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictPop(self, request: api_pb2.DictPopRequest, context: Context) -> api_pb2.DictPopResponse:
        value = self._get(request.dict_id).entries.pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictContains(
        self, request: api_pb2.DictContainsRequest, context: Context
    ) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=request.key in self._get(request.dict_id).entries)

    async def DictLen(self, request: api_pb2.DictLenRequest, context: Context) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self._get(request.dict_id).entries))

    async def DictContents(
        self, request: api_pb2.DictContentsRequest, context: Context
    ) -> AsyncIterator[api_pb2.DictEntry]:
        for key, value in list(self._get(request.dict_id).entries.items()):
            yield api_pb2.DictEntry(key=key, value=value)

    async def DictClear(self, request: api_pb2.DictClearRequest, context: Context) -> Empty:
        self._get(request.dict_id).entries.clear()
        return Empty()

    async def DictDelete(self, request: api_pb2.DictDeleteRequest, context: Context) -> Empty:
        removed = self.dicts.pop(request.dict_id, None)
        for key, dict_id in list(self.names.items()):
            if removed is not None and dict_id == removed.id:
                del self.names[key]
        return Empty()
