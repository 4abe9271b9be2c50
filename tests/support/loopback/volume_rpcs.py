"""RPCs about volumes, including those of `modal volume` and of `modal.Volume`.

Assumptions about Modal: paths in replies are relative, without a leading slash. Files are uploaded to a version 1
volume by their SHA-256, as to mounts, and to a version 2 volume in blocks. Commit and reload require a container.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import texts
from .records import Container
from .rpc import Context, Service
from .volumes import Volume, WorkingCopy, copy_entry, working_copies


class Volumes(Service):
    """RPCs about volumes."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.folder = plane.folder / "volumes"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.volumes: dict[str, Volume] = {}
        self.names: dict[tuple[str, str], str] = {}

    def get(self, volume_id: str) -> Volume:
        if volume_id not in self.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id!r} not found.")
        return self.volumes[volume_id]

    def create(self, name: str, environment: str = "main", version: int = 1) -> Volume:
        volume = Volume(name, environment, version, self.folder)
        volume.data.mkdir()
        self.volumes[volume.id] = volume
        if name:
            self.names[environment, name] = volume.id
        return volume

    def find(self, name: str, environment: str = "main") -> Volume:
        return self.get(self.names.get((environment, name), name))

    def _path(self, volume_id: str, path: str, *, must_exist: bool = True) -> Path:
        root = self.get(volume_id).data
        target = Path(root, path.strip("/"))
        if not target.resolve().is_relative_to(root.resolve()):
            raise GRPCError(Status.INVALID_ARGUMENT, f"Path {path!r} leaves the volume.")
        if must_exist and not target.exists() and not target.is_symlink():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {path!r}")
        return target

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, context: Context
    ) -> api_pb2.VolumeGetOrCreateResponse:
        environment = request.environment_name or "main"
        volume_id = self.names.get((environment, request.deployment_name))
        kind = request.object_creation_type
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED and volume_id is None:
            text = f"Volume {request.deployment_name!r} not found in environment {environment!r}."
            raise GRPCError(Status.NOT_FOUND, text)
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS and volume_id is not None:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume {request.deployment_name!r} already exists.")
        if volume_id is None:
            volume_id = self.create(request.deployment_name, environment, request.version or 1).id
        volume = self.volumes[volume_id]
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume.id, metadata=volume.metadata())

    async def VolumeGetById(self, request: Any, context: Context) -> Any:
        volume = self.get(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.id, metadata=volume.metadata())

    async def VolumeHeartbeat(self, request: Any, context: Context) -> Any:
        return Empty()

    async def VolumeList(self, request: Any, context: Context) -> Any:
        environment = request.environment_name or "main"
        items = [
            api_pb2.VolumeListItem(label=name, volume_id=volume_id, metadata=self.volumes[volume_id].metadata())
            for (where, name), volume_id in self.names.items()
            if where == environment
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name=environment)

    async def VolumeDelete(self, request: Any, context: Context) -> Any:
        volume = self.get(request.volume_id)
        del self.volumes[volume.id]
        self.names.pop((volume.environment, volume.name), None)
        shutil.rmtree(volume.data)
        return Empty()

    # -- RPCs of containers ------------------------------------------------------------------------------------------

    def _copy(self, context: Context, volume_id: str) -> tuple[Container, WorkingCopy]:
        container = context.calling_container
        copies = working_copies(container)
        if volume_id not in copies:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id!r} is not mounted in this container.")
        return container, copies[volume_id]

    async def VolumeCommit(
        self, request: api_pb2.VolumeCommitRequest, context: Context
    ) -> api_pb2.VolumeCommitResponse:
        _, copy = self._copy(context, request.volume_id)
        volume, mode = copy.volume, self.plane.mode
        volume.committing += 1
        volume.most_commits_together = max(volume.most_commits_together, volume.committing)
        try:
            if mode.commit_seconds:
                await asyncio.sleep(mode.commit_seconds)
            if mode.commits_fail_once:
                copy.fail_once()
            await asyncio.to_thread(copy.publish)
        finally:
            volume.committing -= 1
        return api_pb2.VolumeCommitResponse(skip_reload=mode.skip_reload)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest, context: Context) -> Any:
        container, copy = self._copy(context, request.volume_id)
        assert container.process is not None
        held = await asyncio.to_thread(copy.open_file, container.process.pids())
        if held is not None:
            raise GRPCError(
                Status.FAILED_PRECONDITION,
                f"{texts.OPEN_FILES} (path {held} in volume {request.volume_id})",
            )
        await asyncio.to_thread(copy.publish)
        await asyncio.to_thread(copy.fetch, self.plane.mode.reload_pause)
        return Empty()

    # -- RPCs of clients and containers ------------------------------------------------------------------------------

    def _entries(self, request: Any) -> list[api_pb2.FileEntry]:
        root = self.get(request.volume_id).data
        start = self._path(request.volume_id, request.path)
        below = start.rglob("*") if request.recursive else start.iterdir()
        paths = sorted(below) if start.is_dir() else [start]
        entries = []
        for path in paths:
            stat = path.lstat()
            kind = api_pb2.FileEntry.FILE
            if path.is_symlink():
                kind = api_pb2.FileEntry.SYMLINK
            elif path.is_dir():
                kind = api_pb2.FileEntry.DIRECTORY
            entries.append(
                api_pb2.FileEntry(
                    path=path.relative_to(root).as_posix(), type=kind, mtime=int(stat.st_mtime), size=stat.st_size
                )
            )
        return entries

    async def VolumeListFiles(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield api_pb2.VolumeListFilesResponse(entries=self._entries(request))

    async def VolumeListFiles2(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield api_pb2.VolumeListFiles2Response(entries=self._entries(request))

    async def VolumeGetFile2(self, request: Any, context: Context) -> Any:
        path = self._path(request.volume_id, request.path)
        if path.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"Not a file: {request.path!r}")
        size = path.stat().st_size
        start = min(request.start, size)
        length = min(request.len or size, size - start)
        urls = await asyncio.to_thread(self.plane.blobs.download_urls, path, start, length)
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=length)

    def _check_target(self, request: Any, name: str) -> Path:
        target = self._path(request.volume_id, name, must_exist=False)
        if target.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"{name!r} is a directory.")
        if target.exists() and request.disallow_overwrite_existing_files:
            raise GRPCError(Status.ALREADY_EXISTS, f"{name!r} already exists.")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    async def VolumePutFiles(self, request: Any, context: Context) -> Any:
        for entry in request.files:
            target = self._check_target(request, entry.filename)
            copy_entry(self.plane.mounts.file(entry.sha256_hex), target)
            target.chmod((entry.mode & 0o7777) or 0o644)
        return Empty()

    async def VolumePutFiles2(self, request: Any, context: Context) -> Any:
        blobs = self.plane.blobs
        targets = [self._check_target(request, entry.path) for entry in request.files]
        missing = []
        for number, entry in enumerate(request.files):
            for index, block in enumerate(entry.blocks):
                name = f"block-{block.contents_sha256.hex()}"
                if not (blobs.folder / name).exists():
                    missing.append(
                        api_pb2.VolumePutFiles2Response.MissingBlock(
                            file_index=number, block_index=index, put_url=f"{blobs.base}/blob/{name}"
                        )
                    )
        if not missing:
            for entry, target in zip(request.files, targets, strict=True):
                with target.open("wb") as file:
                    for block in entry.blocks:
                        file.write((blobs.folder / f"block-{block.contents_sha256.hex()}").read_bytes())
                target.chmod((entry.mode & 0o7777) or 0o644)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeRemoveFile(self, request: Any, context: Context) -> Any:
        path = self._path(request.volume_id, request.path)
        if path.is_dir() and not path.is_symlink():
            if not request.recursive:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path!r} is a directory.")
            shutil.rmtree(path)
        else:
            path.unlink()
        return Empty()

    VolumeRemoveFile2 = VolumeRemoveFile
