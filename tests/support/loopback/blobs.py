"""Blobs, blocks of volume uploads, and volume downloads, over HTTP on 127.0.0.1.

Assumptions about Modal: upload and download URLs behave as S3's do. The ETag of an upload is its MD5. A file on a
version 2 volume is uploaded in blocks of 8 MiB; the response to each PUT contains bytes that the client sends back.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import new_id
from .rpc import Context, Service

if TYPE_CHECKING:
    from .plane import ControlPlane

BLOCK_SIZE = 8 << 20


class Blobs(Service):
    """RPCs about blobs, and the HTTP server behind their URLs."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self.folder = plane.folder / "blobs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.downloads: dict[str, Path] = {}
        self.base = ""
        self.runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_put("/blob/{name}", self._put)
        app.router.add_get("/blob/{name}", self._get)
        app.router.add_get("/file/{name}/{block}", self._get_block)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        assert self.runner is not None
        return int(self.runner.addresses[0][1])

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    def path(self, blob_id: str) -> Path:
        path = self.folder / Path(blob_id).name
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"Blob {blob_id!r} not found.")
        return path

    def download_urls(self, path: Path, start: int, length: int) -> list[str]:
        """Return URLs for the blocks of a byte range of a copy of the file. Later changes of the file do not show."""
        name = new_id("dl")
        copy = self.folder / name
        with path.open("rb") as source, copy.open("wb") as target:
            source.seek(start)
            left = length
            while left > 0 and (chunk := source.read(min(left, 1 << 20))):
                target.write(chunk)
                left -= len(chunk)
        first, last = start // BLOCK_SIZE, max(start, start + length - 1) // BLOCK_SIZE
        self.downloads[name] = copy
        return [f"{self.base}/file/{name}/{start}-{block}" for block in range(first, last + 1)] if length else []

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _put(self, request: web.Request) -> web.Response:
        name = Path(request.match_info["name"]).name
        digest, part = hashlib.md5(usedforsecurity=False), self.folder / f"{name}.part"
        with part.open("wb") as file:
            async for chunk in request.content.iter_chunked(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        part.replace(self.folder / name)
        return web.Response(headers={"ETag": f'"{digest.hexdigest()}"'}, body=b"ok")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = self.folder / Path(request.match_info["name"]).name
        if not path.is_file():
            return web.Response(status=404)
        return web.FileResponse(path)

    async def _get_block(self, request: web.Request) -> web.StreamResponse:
        path = self.downloads.get(request.match_info["name"])
        start, _, block = request.match_info["block"].partition("-")
        if path is None:
            return web.Response(status=404)
        begin = max(int(start), int(block) * BLOCK_SIZE)
        end = (int(block) + 1) * BLOCK_SIZE
        with path.open("rb") as file:
            file.seek(begin - int(start))
            return web.Response(body=file.read(end - begin))

    # -- RPCs --------------------------------------------------------------------------------------------------------

    async def BlobCreate(self, request: api_pb2.BlobCreateRequest, context: Context) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        url = f"{self.base}/blob/{blob_id}"
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id, blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[url])
        )

    async def BlobGet(self, request: api_pb2.BlobGetRequest, context: Context) -> api_pb2.BlobGetResponse:
        self.path(request.blob_id)
        return api_pb2.BlobGetResponse(download_url=f"{self.base}/blob/{request.blob_id}")
