"""Apps from AppCreate until their last container has exited, and small RPCs of the client.

Assumptions about Modal: an ephemeral app ends, together with its containers, when its client disconnects or sends no
heartbeat for some time, for example during an outage or while a laptop is suspended. A detached app continues, and
ends when its calls and its containers have ended; its blocking calls are cancelled when its client disconnects (see
`Mode.detached_remote_continues`), its spawned calls continue. Stopping an app sets the status of its unfinished
inputs to TERMINATED, and sends its containers SIGINT followed by a grace period. The reason is a line of the app's
log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import texts
from .records import App, new_id
from .rpc import Context, Service

#: Seconds between two checks of all apps.
WATCH_INTERVAL = 0.1


def _reason(request: api_pb2.AppClientDisconnectRequest) -> str:
    """Return the line of an app's log for the reason that its client sent."""
    match request.reason:
        case api_pb2.APP_DISCONNECT_REASON_LOCAL_EXCEPTION:
            return texts.local_exception(request.exception)
        case api_pb2.APP_DISCONNECT_REASON_REMOTE_EXCEPTION:
            return texts.remote_exception(request.exception)
        case api_pb2.APP_DISCONNECT_REASON_KEYBOARD_INTERRUPT:
            return texts.STOPPED_FROM_CLI
        case _:
            return texts.ENTRYPOINT_COMPLETED


class Apps(Service):
    """RPCs about apps and about the client itself."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.apps: dict[str, App] = {}

    def get(self, app_id: str) -> App:
        if app_id not in self.apps:
            raise GRPCError(Status.NOT_FOUND, f"App {app_id!r} not found.")
        return self.apps[app_id]

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Stop apps whose client has disconnected or whose work is done, until cancelled."""
        plane, previous = self.plane, time.monotonic()
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            now = time.monotonic()
            # On a busy machine, clients are as late as this task: a test should not fail for that reason.
            lateness, previous = now - previous - WATCH_INTERVAL, now
            for app in list(self.apps.values()):
                app.last_heartbeat += lateness
                if app.connected and now - app.last_heartbeat > plane.client_timeout:
                    self.disconnected(app, texts.CLIENT_DISCONNECTED)
                if app.stopped or app.connected or not app.detached:
                    continue
                calls = [c for c in plane.calls.calls.values() if c.function.app is app]
                busy = any(i.state != "done" for c in calls for i in c.inputs)
                if not busy and not plane.scheduler.of_app(app):
                    self.stop(app)
            plane.scheduler.scale_down()

    def disconnected(self, app: App, reason: str) -> None:
        if app.stopped or not app.connected:
            return
        app.connected = False
        if app.detached:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            if not self.plane.mode.detached_remote_continues:
                self._cancel_blocking_calls(app)
        elif app.state != api_pb2.APP_STATE_DEPLOYED:
            self.stop(app, reason)

    def _cancel_blocking_calls(self, app: App) -> None:
        for call in self.plane.calls.calls.values():
            if call.function.app is app and call.client_retries:
                for entry in call.inputs:
                    self.plane.scheduler.cancel(entry)

    def stop_all(self) -> None:
        """Stop all apps, as when the workspace has reached its spend limit."""
        for app in list(self.apps.values()):
            self.stop(app)

    def stop(self, app: App, reason: str = "") -> None:
        if app.stopped:
            return
        if reason:
            self.plane.logs.app_line(app, reason)
        app.state = api_pb2.APP_STATE_STOPPING
        self.plane.scheduler.stop_app(app)
        self.settle(app)

    def settle(self, app: App) -> None:
        """Mark a stopping app as stopped if its last container has exited."""
        if app.state == api_pb2.APP_STATE_STOPPING and not self.plane.scheduler.of_app(app):
            app.state = api_pb2.APP_STATE_STOPPED
            app.stopped_at = time.time()
            self.plane.logs.of(app).notify()

    # -- RPCs --------------------------------------------------------------------------------------------------------

    async def AppCreate(self, request: api_pb2.AppCreateRequest, context: Context) -> api_pb2.AppCreateResponse:
        environment = request.environment_name or "main"
        if environment not in self.plane.environments:
            raise GRPCError(Status.NOT_FOUND, f"Environment {environment!r} not found.")
        app = App(request.description, request.app_state, environment, dict(request.tags))
        app.connected = request.app_state != api_pb2.APP_STATE_INITIALIZING
        self.apps[app.id] = app
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"https://loopback.invalid/apps/{app.id}")

    async def AppPublish(self, request: api_pb2.AppPublishRequest, context: Context) -> api_pb2.AppPublishResponse:
        app = self.get(request.app_id)
        app.state, app.name = request.app_state, request.name or app.name
        app.tags |= dict(request.tags)
        app.function_ids |= dict(request.function_ids)
        url = f"https://loopback.invalid/apps/{app.id}"
        return api_pb2.AppPublishResponse(url=url, deployed_at=time.time())

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest, context: Context) -> Empty:
        self.get(request.app_id).last_heartbeat = time.monotonic()
        return Empty()

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest, context: Context) -> Empty:
        app = self.get(request.app_id)
        app.disconnect = request
        self.disconnected(app, _reason(request))
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest, context: Context) -> Empty:
        app = self.get(request.app_id)
        app.connected = False
        is_web = request.source == api_pb2.APP_STOP_SOURCE_WEB
        self.stop(app, texts.STOPPED_FROM_DASHBOARD if is_web else texts.STOPPED_FROM_CLI)
        return Empty()

    async def AppGetLifecycle(self, request: Any, context: Context) -> Any:
        app = self.get(request.app_id)
        lifecycle = api_pb2.AppLifecycle(
            app_state=app.state,  # type: ignore[arg-type]  # protobuf keeps enums as numbers
            created_at=app.created_at,
            stopped_at=app.stopped_at,
        )
        return api_pb2.AppGetLifecycleResponse(lifecycle=lifecycle)

    async def AppGetLayout(self, request: Any, context: Context) -> Any:
        app = self.get(request.app_id)
        objects = [
            api_pb2.Object(object_id=i, function_handle_metadata=self.plane.functions.get(i).metadata)
            for i in app.function_ids.values()
        ]
        return api_pb2.AppGetLayoutResponse(
            app_layout=api_pb2.AppLayout(objects=objects, function_ids=app.function_ids)
        )

    def _named(self, name: str, environment: str) -> App | None:
        environment = environment or "main"
        for app in self.apps.values():
            if app.name == name and app.environment == environment and app.state == api_pb2.APP_STATE_DEPLOYED:
                return app
        return None

    async def AppGetByDeploymentName(self, request: Any, context: Context) -> Any:
        app = self._named(request.name, request.environment_name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.id if app else "", environment_name="main")

    async def AppGetOrCreate(self, request: Any, context: Context) -> Any:
        # Clients from 1.6.4 on also send the id of an app, which may be ephemeral or stopped.
        app = self.apps.get(request.app_name) or self._named(request.app_name, request.environment_name)
        if app is None:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"App {request.app_name!r} not found in environment 'main'.")
            app = App(request.app_name, api_pb2.APP_STATE_DEPLOYED, name=request.app_name, connected=False)
            self.apps[app.id] = app
        return api_pb2.AppGetOrCreateResponse(app_id=app.id)

    async def AppList(self, request: Any, context: Context) -> Any:
        items = [
            api_pb2.AppListResponse.AppListItem(
                app_id=app.id,
                description=app.description,
                state=app.state,  # type: ignore[arg-type]  # protobuf keeps enums as numbers
                created_at=app.created_at,
                stopped_at=app.stopped_at,
                n_running_tasks=len(self.plane.scheduler.of_app(app)),
                name=app.name,
            )
            for app in self.apps.values()
        ]
        return api_pb2.AppListResponse(apps=items)

    async def AppSetTags(self, request: Any, context: Context) -> Empty:
        self.get(request.app_id).tags = dict(request.tags)
        return Empty()

    async def AppGetTags(self, request: Any, context: Context) -> Any:
        return api_pb2.AppGetTagsResponse(tags=self.get(request.app_id).tags)

    async def ClientHello(self, request: Any, context: Context) -> Any:
        return api_pb2.ClientHelloResponse()

    async def AuthTokenGet(self, request: Any, context: Context) -> Any:
        claims = json.dumps({"exp": time.time() + 1200}).encode()
        body = base64.urlsafe_b64encode(claims).decode().rstrip("=")
        return api_pb2.AuthTokenGetResponse(token=f"e30.{body}.{new_id('sig')}")

    async def WorkspaceNameLookup(self, request: Any, context: Context) -> Any:
        return api_pb2.WorkspaceNameLookupResponse(username="loopback", workspace_name="loopback")

    async def TokenInfoGet(self, request: Any, context: Context) -> Any:
        return api_pb2.TokenInfoGetResponse(token_id=self.plane.token[0], workspace_name="loopback")
