"""The application: the JSON API, the events, and the files of the page."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from skyrl_modal.web.access import AccessControl, Application
from skyrl_modal.web.api import Api, Parameters
from skyrl_modal.web.assets_folder import ASSETS, read_asset
from skyrl_modal.web.live import EventStream, Hub
from skyrl_modal.web.plain import plain
from skyrl_modal.web.runs import Runs, describe

#: Runs that one connection can follow.
_MAX_FOLLOWED = 20
_ACTION_HEADER = "x-skyrl-modal"
_READ_ONLY = "started without --allow-actions"


def make_app(
    *, token: str, port: int, allow_actions: bool, drop: Callable[[Any], None]
) -> tuple[Application, Callable[[], None]]:
    """Return the application, and a function that ends the connections with events.

    Args:
        token: What each request has to contain.
        port: The port of the server.
        allow_actions: Whether runs can be cancelled.
        drop: Closes the connection of a client by its address.
    """
    runs = Runs()
    api, hub = Api(runs), Hub(runs)

    def route(path: str, answer: Callable[[Parameters], Awaitable[Any]]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _json_answer(answer, request)

        return Route(path, endpoint, methods=["GET"])

    async def info(_: Parameters) -> Any:
        reason = None if allow_actions else _READ_ONLY
        return {"version": version("skyrl-modal"), "allow_actions": allow_actions, "read_only_reason": reason}

    async def cancel(request: Request) -> Response:
        if not allow_actions:
            return _error(403, "actions are not permitted", "Start `skyrl-modal ui --allow-actions`.")
        if request.headers.get(_ACTION_HEADER) != "1":
            return _error(403, "the request is not from the page", "")
        return await _json_answer(api.cancel, request, status=202)

    async def events(request: Request) -> Response | EventStream:
        run_ids = request.query_params.getlist("run")[:_MAX_FOLLOWED]
        try:
            for run_id in run_ids:
                await runs.observed(run_id)
        except Exception as error:
            return _error(*describe(error))
        return EventStream(hub, run_ids, drop)

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        await runs.list_soon()
        yield

    app = Starlette(
        lifespan=lifespan,
        routes=[
            route("/api/info", info),
            route("/api/runs", api.runs),
            route("/api/series", api.series),
            Route("/api/events", _Endpoint(events)),
            route("/api/runs/{run_id}", api.details),
            route("/api/runs/{run_id}/keys", api.keys),
            route("/api/runs/{run_id}/phases", api.phases),
            route("/api/runs/{run_id}/rollouts", api.rollouts),
            route("/api/runs/{run_id}/checkpoints", api.checkpoints),
            route("/api/runs/{run_id}/log", api.log),
            Route("/api/runs/{run_id}/cancel", cancel, methods=["POST"]),
            Route("/assets/{name}", _asset, methods=["GET"]),
            *(Route(path, _page, methods=["GET"]) for path in ("/", "/compare", "/runs/{run_id}")),
        ],
        exception_handlers={404: _not_found, 405: _not_found},
    )
    return AccessControl(app, token=token, port=port, drop=drop), hub.close


class _Endpoint:
    """An ASGI application that chooses another one by the request. Starlette calls functions in another way."""

    def __init__(self, choose: Callable[[Request], Awaitable[Application]]) -> None:
        self._choose = choose

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = await self._choose(Request(scope, receive))
        await answer(scope, receive, send)


async def _json_answer(answer: Callable[[Parameters], Awaitable[Any]], request: Request, status: int = 200) -> Response:
    """Return what a function answers as JSON. Text that is JSON already is sent as it is."""
    try:
        value = await answer(Parameters(request.path_params, request.query_params.multi_items()))
    except Exception as error:
        return _error(*describe(error))
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return Response(text, status, media_type="application/json")


def _error(status: int, message: str, remedy: str) -> Response:
    text = json.dumps({"error": plain({"message": message, "remedy": remedy})})
    return Response(text, status, media_type="application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    return _error(404, "there is no such page", "")


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        return Response(read_asset(name), media_type=ASSETS[name])
    except (KeyError, FileNotFoundError):
        return _error(404, "there is no such file", "")


async def _page(request: Request) -> Response:
    try:
        return Response(read_asset("index.html"), media_type=ASSETS["index.html"])
    except FileNotFoundError:
        return _error(404, "the page is not in this installation", "Install skyrl-modal again.")
