"""Mounts: files stored by their SHA-256, and copied into each container.

Assumptions about Modal: the server never requests a file again that it has, whichever mount the file is in. A mount
is an index of paths. A container may change its files, unless `Mode.read_only_mounts` is set; other containers do not
see the change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import new_id
from .rpc import Context, Service

T = TypeVar("T", bound=Message)


def _checked(response: T) -> T:
    """Set the time at which the server has checked that it has the files. Client 1.6.0 does not know the field."""
    if "checked_at" in response.DESCRIPTOR.fields_by_name:
        response.checked_at.FromNanoseconds(time.time_ns())  # type: ignore[attr-defined]  # depends on the client
    return response


class Mounts(Service):
    """RPCs about mounts, and the copy into a container."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.folder = plane.folder / "files"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mounts: dict[str, list[api_pb2.MountFile]] = {}

    def file(self, sha256_hex: str) -> Path:
        return self.folder / Path(sha256_hex).name

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._store(data, digest)
        return digest

    def _store(self, data: bytes, digest: str) -> None:
        part = self.folder / f"{digest}.{new_id('part')}"
        part.write_bytes(data)
        part.replace(self.file(digest))

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, context: Context
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if not self.file(digest).exists()]
        return _checked(api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing))

    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest, context: Context
    ) -> api_pb2.MountPutFileResponse:
        digest = request.sha256_hex
        kind = request.WhichOneof("data_oneof")
        if kind is not None and not self.file(digest).exists():
            data = request.data
            if kind == "data_blob_id":
                data = self.plane.blobs.path(request.data_blob_id).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise GRPCError(Status.INVALID_ARGUMENT, "The content does not have the declared SHA-256.")
            self._store(data, digest)
        exists = self.file(digest).exists()
        return _checked(api_pb2.MountPutFileResponse(exists=exists))

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, context: Context
    ) -> api_pb2.MountGetOrCreateResponse:
        if request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL:
            pass  # Modal's client and Python, which the container's interpreter already has
        elif request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Mount {request.deployment_name!r} not found.")
        missing = [entry.filename for entry in request.files if not self.file(entry.sha256_hex).exists()]
        if missing:
            raise GRPCError(Status.FAILED_PRECONDITION, f"Files were never uploaded: {missing[:3]}")
        mount_id = new_id("mo")
        self.mounts[mount_id] = list(request.files)
        lines = sorted(f"{entry.filename}\0{entry.sha256_hex}" for entry in request.files)
        checksum = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=checksum)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    def folders(self, mount_ids: list[str]) -> list[str]:
        """Return the common folder of each mount's files; of a mount directly in /root or /, each file."""
        found = []
        for mount_id in mount_ids:
            paths = [PurePosixPath("/") / entry.filename.lstrip("/") for entry in self.mounts[mount_id]]
            common = os.path.commonpath([path.parent for path in paths]) if paths else "/"
            found += [common] if common not in ("/", "/root") else [str(path) for path in paths]
        return found

    def stage(self, mount_ids: list[str], copies: list[tuple[str, str]], root: Path) -> None:
        """Copy the mounts' files into the folder that becomes the container's root. Runs in a thread."""
        for mount_id, prefix in [*copies, *((mount_id, "/") for mount_id in mount_ids)]:
            for entry in self.mounts[mount_id]:
                where = PurePosixPath(prefix) / entry.filename.lstrip("/")
                target = root / where.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.file(entry.sha256_hex), target)
                target.chmod((entry.mode & 0o7777) or 0o644)
