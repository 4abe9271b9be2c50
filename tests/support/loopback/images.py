"""Images: recorded, not built. A container sees this machine's programs and the image's environment variables.

Assumptions about Modal: an image's id depends on its definition only, so the same layers are built once. The first
request for an image is answered without a result; ImageJoinStreaming then returns the build log and the result. ENV,
WORKDIR and copied mounts are inherited by the layers above.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import AsyncIterator
from string import Template
from typing import Any

import attrs
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .logs import STDOUT, Entry
from .records import FAILURE, SUCCESS, App
from .rpc import Context, Service

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@attrs.define(eq=False)
class Image:
    """One layer, with the layer below it."""

    id: str
    definition: api_pb2.Image
    base: Image | None
    builder_version: str
    result: api_pb2.GenericResult | None = None
    log: str = ""

    @property
    def commands(self) -> list[str]:
        """Dockerfile commands of all layers, those of the base first, without FROM lines that name a layer."""
        own = list(self.definition.dockerfile_commands)
        if self.base is None:
            return own
        return self.base.commands + [line for line in own if not line.upper().startswith("FROM BASE")]

    @property
    def env(self) -> dict[str, str]:
        """Variables that ENV lines set."""
        env = {"PATH": DEFAULT_PATH}
        for line in self.commands:
            instruction, _, rest = line.strip().partition(" ")
            if instruction.upper() != "ENV":
                continue
            parts = shlex.split(rest)
            if parts and "=" not in parts[0]:
                env[parts[0]] = Template(rest.strip().partition(" ")[2]).safe_substitute(env)
                continue
            for part in parts:
                name, _, value = part.partition("=")
                env[name] = Template(value).safe_substitute(env)
        return env

    @property
    def workdir(self) -> str:
        """The last WORKDIR; /root if there is none."""
        folders = [line.split(None, 1)[1] for line in self.commands if line.upper().startswith("WORKDIR ")]
        return folders[-1].strip().strip("'\"") if folders else "/root"

    @property
    def copies(self) -> list[tuple[str, str]]:
        """Mounts that are copied into the image: pairs of mount id and target path."""
        found = self.base.copies if self.base else []
        if self.definition.context_mount_id:
            for line in self.definition.dockerfile_commands:
                if line.upper().startswith("COPY "):
                    found = [*found, (self.definition.context_mount_id, line.split()[-1])]
        return found


class Images(Service):
    """RPCs about images and environments."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.images: dict[str, Image] = {}
        self.builders: dict[str, App] = {}  # by image id: the app whose log is the build log

    def metadata(self, image: Image) -> api_pb2.ImageMetadata:
        return api_pb2.ImageMetadata(
            python_version_info=f"Python {self.plane.python.version}",
            workdir=image.workdir if image.workdir != "/root" else None,
            image_builder_version=image.builder_version,
        )

    def get(self, image_id: str) -> Image:
        if image_id not in self.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {image_id!r} not found.")
        return self.images[image_id]

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, context: Context
    ) -> api_pb2.ImageGetOrCreateResponse:
        definition = request.image
        blob = self._identity(definition) + request.builder_version.encode()
        image_id = f"im-{hashlib.sha256(blob).hexdigest()[:22]}"
        image = self.images.get(image_id)
        if image is None or (request.force_build and image.result is not None) or self._failed(image):
            base = self.get(definition.base_images[0].image_id) if definition.base_images else None
            image = Image(image_id, definition, base, request.builder_version)
            self.images[image_id] = image
        if image.result is None:
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=image.result, metadata=self.metadata(image))

    def _identity(self, definition: api_pb2.Image) -> bytes:
        """Return what an image depends on: its definition, and the content of copied files instead of their mount."""
        if not definition.context_mount_id:
            return definition.SerializeToString(deterministic=True)
        entries = self.plane.mounts.mounts[definition.context_mount_id]
        content = api_pb2.Image()
        content.CopyFrom(definition)
        content.context_mount_id = repr(sorted((entry.filename, entry.sha256_hex, entry.mode) for entry in entries))
        return content.SerializeToString(deterministic=True)

    @staticmethod
    def _failed(image: Image) -> bool:
        return image.result is not None and image.result.status != SUCCESS

    def _build(self, image: Image) -> None:
        for failure in self.plane.faults.build_failures:
            if any(failure.pattern.search(line) for line in image.definition.dockerfile_commands):
                image.log = failure.log
                image.result = api_pb2.GenericResult(status=FAILURE, exception=failure.exception)
                return
        image.log = "".join(f"=> Step {n}: {c}\n" for n, c in enumerate(image.definition.dockerfile_commands))
        image.result = api_pb2.GenericResult(status=SUCCESS)

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, context: Context
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        image = self.get(request.image_id)
        if image.result is None:
            self._build(image)
        assert image.result is not None
        for number, line in enumerate(image.log.splitlines(keepends=True), 1):
            if request.last_entry_id and number <= int(request.last_entry_id):
                continue
            entry = api_pb2.TaskLogs(data=line, timestamp=time.time(), file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)
            yield api_pb2.ImageJoinStreamingResponse(task_logs=[entry], entry_id=str(number))
        metadata = self.metadata(image) if image.result.status == SUCCESS else None
        yield api_pb2.ImageJoinStreamingResponse(result=image.result, metadata=metadata, eof=True)

    async def ImageFromId(self, request: Any, context: Context) -> Any:
        image = self.get(request.image_id)
        return api_pb2.ImageFromIdResponse(image_id=image.id, metadata=self.metadata(image))

    async def ImageBuildChainGet(self, request: Any, context: Context) -> Any:
        image: Image | None = self.get(request.image_id)
        steps = []
        while image is not None:
            steps.insert(0, self._step(image))
            image = image.base
        return api_pb2.ImageBuildChainGetResponse(build_steps=steps)

    def builder(self, app_id: str) -> App | None:
        """Return the app that built an image."""
        return next((app for app in self.builders.values() if app.id == app_id), None)

    def _step(self, image: Image) -> api_pb2.ImageBuildStep:
        """Return the record of a build. Its log is the log of a separate builder app."""
        if image.id not in self.builders:
            app = self.builders[image.id] = App("image builder", api_pb2.APP_STATE_STOPPED)
            for number, line in enumerate(image.log.splitlines(keepends=True), 1):
                self.plane.logs.of(app).entries.append(
                    Entry(number, time.time_ns(), STDOUT, line, f"ta-{image.id}", "", "", "")
                )
        app = self.builders[image.id]
        step = api_pb2.ImageBuildStep(image_id=image.id, builder_app_id=app.id, builder_task_id=f"ta-{image.id}")
        step.started_at.FromSeconds(int(app.created_at) - 1)
        step.finished_at.FromSeconds(int(time.time()) + 1)
        return step

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, context: Context
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = request.deployment_name or "main"
        if name not in self.plane.environments:
            raise GRPCError(Status.NOT_FOUND, f"Environment {name!r} not found.")
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06", webhook_suffix="")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=f"en-{name}", metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings)
        )

    async def EnvironmentList(self, request: Any, context: Context) -> Any:
        items = [api_pb2.EnvironmentListItem(name=name) for name in self.plane.environments]
        return api_pb2.EnvironmentListResponse(items=items)
