"""Functions: RPCs that create and look them up, and the arguments of their containers.

Assumptions about Modal: creating a function with an unknown GPU, a timeout over one day, or a volume or secret that
does not exist is refused with INVALID_ARGUMENT or NOT_FOUND. The list of GPUs grows: tests can add names to it. Of a
list of GPUs, the first one is allocated. A cluster of more than 32 containers is refused, and one whose containers do
not request all GPUs of their hosts, where the number is known.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import texts
from .records import Container, Function, new_id
from .rpc import Context, Service

GPUS = frozenset({"T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "H100", "H100!"}) | {
    *("H200", "B200", "B200+", "B300", "GB200", "RTX-PRO-6000", "ANY"),
}
GPUS_PER_HOST = {"H100": 8, "H100!": 8, "H200": 8, "B200": 8, "A10": 4, "A10G": 4}
MAX_CLUSTER_SIZE = 32
MAX_TIMEOUT_SECONDS = 24 * 3600


class Functions(Service):
    """RPCs about functions."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.functions: dict[str, Function] = {}
        self.gpus = set(GPUS)
        self.full_hosts = True  # refuse clusters that do not request full hosts

    def get(self, function_id: str) -> Function:
        if function_id not in self.functions:
            raise GRPCError(Status.NOT_FOUND, f"Function {function_id!r} not found.")
        return self.functions[function_id]

    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest, context: Context
    ) -> api_pb2.FunctionPrecreateResponse:
        app = self.plane.apps.get(request.app_id)
        function = self.functions.get(request.existing_function_id) or Function(app, request.function_name)
        function.metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            app_id=app.id,
        )
        self.functions[function.id] = function
        return api_pb2.FunctionPrecreateResponse(function_id=function.id, handle_metadata=function.metadata)

    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest, context: Context
    ) -> api_pb2.FunctionCreateResponse:
        app = self.plane.apps.get(request.app_id)
        ranked = [entry.function for entry in request.function_data.ranked_functions] or [request.function]
        for definition in ranked:
            self._check(definition)
        definition = ranked[0]
        function = self.functions.get(request.existing_function_id) or Function(app, definition.function_name)
        function.definition, function.data = definition, self._data(request)
        function.metadata.function_name = definition.function_name
        function.metadata.function_type = definition.function_type
        function.metadata.app_id = app.id
        function.metadata.definition_id = new_id("de")
        self.functions[function.id] = function
        app.function_ids[definition.function_name] = function.id
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=definition,
            function_data=function.data,
            handle_metadata=function.metadata,
        )

    @staticmethod
    def _data(request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionData:
        if request.function_data.ranked_functions:
            return request.function_data
        data, source = api_pb2.FunctionData(), request.function
        known = {field.name: field for field in api_pb2.Function.DESCRIPTOR.fields}
        for field in api_pb2.FunctionData.DESCRIPTOR.fields:
            if field.name not in known:
                continue
            value = getattr(source, field.name)
            if field.is_repeated or field.message_type is not None:
                if field.is_repeated or source.HasField(field.name):
                    getattr(data, field.name).MergeFrom(value)
            elif not known[field.name].has_presence or source.HasField(field.name):
                setattr(data, field.name, value)
        data.ranked_functions.add(rank=0, function=source)
        return data

    def _check(self, definition: api_pb2.Function) -> None:
        gpu = definition.resources.gpu_config
        if gpu.count and gpu.gpu_type.upper() not in self.gpus:
            known = ", ".join(sorted(self.gpus))
            text = f"Invalid GPU type: {gpu.gpu_type!r}. Must be one of: {known}."
            raise GRPCError(Status.INVALID_ARGUMENT, text)
        if definition.timeout_secs > MAX_TIMEOUT_SECONDS:
            raise GRPCError(Status.INVALID_ARGUMENT, f"Function timeout must be at most {MAX_TIMEOUT_SECONDS} seconds.")
        for mount in definition.volume_mounts:
            self.plane.volumes.get(mount.volume_id)
        if definition._experimental_group_size > 1:
            self._check_cluster(definition)
        used = [*definition.secret_ids, *(mount.credentials_secret_id for mount in definition.cloud_bucket_mounts)]
        missing = [s for s in filter(None, used) if s not in self.plane.secrets.secrets]
        if missing:
            raise GRPCError(Status.NOT_FOUND, f"Secret {missing[0]!r} not found.")
        if definition.image_id:
            self.plane.images.get(definition.image_id)

    def _check_cluster(self, definition: api_pb2.Function) -> None:
        gpu = definition.resources.gpu_config
        if not self.plane.mode.clusters_allowed:
            raise GRPCError(Status.PERMISSION_DENIED, texts.CLUSTERS_REFUSED)
        if definition._experimental_group_size > MAX_CLUSTER_SIZE:
            text = f"Clustered functions can have at most {MAX_CLUSTER_SIZE} containers."
            raise GRPCError(Status.INVALID_ARGUMENT, text)
        count = GPUS_PER_HOST.get(gpu.gpu_type.upper(), gpu.count)
        if self.full_hosts and (not gpu.count or gpu.count != count):
            text = f'Clustered functions must request all GPUs of their hosts, for example gpu="H100:{count or 8}".'
            raise GRPCError(Status.INVALID_ARGUMENT, text)

    def arguments(self, container: Container) -> api_pb2.ContainerArguments:
        """Return the entrypoint's arguments. The app layout must contain every dependency."""
        function = container.function
        definition = api_pb2.Function()
        definition.CopyFrom(function.definition)
        objects = [
            api_pb2.Object(object_id=function_id, function_handle_metadata=self.functions[function_id].metadata)
            for function_id in function.app.function_ids.values()
        ]
        for dependency in definition.object_dependencies:
            object_id = dependency.object_id
            volume = self.plane.volumes.volumes.get(object_id)
            entry = api_pb2.Object(object_id=object_id)
            if volume is not None:
                entry.volume_metadata.CopyFrom(volume.metadata())
            if object_id not in self.functions:
                objects.append(entry)
        return api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app.id,
            function_def=definition,
            environment_name=function.app.environment,
            app_layout=api_pb2.AppLayout(objects=objects, function_ids=function.app.function_ids),
        )

    async def FunctionGet(self, request: api_pb2.FunctionGetRequest, context: Context) -> Any:
        for app in self.plane.apps.apps.values():
            if app.name == request.app_name and app.state == api_pb2.APP_STATE_DEPLOYED:
                function_id = app.function_ids.get(request.object_tag)
                if function_id:
                    metadata = self.functions[function_id].metadata
                    return api_pb2.FunctionGetResponse(function_id=function_id, handle_metadata=metadata)
        raise GRPCError(Status.NOT_FOUND, f"App {request.app_name!r} not found in environment 'main'.")

    async def FunctionGetById(self, request: Any, context: Context) -> Any:
        function = self.get(request.function_id)
        return api_pb2.FunctionGetByIdResponse(function=function.data, handle_metadata=function.metadata)

    async def FunctionGetCurrentStats(self, request: Any, context: Context) -> Any:
        function = self.get(request.function_id)
        running = sum(len(container.running) for container in function.containers)
        return api_pb2.FunctionStats(
            backlog=len(function.queue), num_total_tasks=len(function.containers), num_running_inputs=running
        )

    async def FunctionGetDynamicConcurrency(self, request: Any, context: Context) -> Any:
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency)

    async def ContainerHello(self, request: Any, context: Context) -> Any:
        return Empty()
