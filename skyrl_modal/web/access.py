"""Who may ask the server, and what its answers permit: an ASGI application around another one.

* The ``Host`` of a request is this server's own: a page of another site whose name leads to 127.0.0.1 is refused
  (DNS rebinding). The ``Origin`` and ``Sec-Fetch-Site`` of a request, if it has them, are this server's too.
* Each request has the token: as a cookie, which ``/?token=...`` sets, or as ``Authorization: Bearer``.
* A connection whose client does not read is closed.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What the page may load: files of this server only, and no inline script or style.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
#: Seconds that a client may take to read a part of an answer.
_SEND_SECONDS = 30.0
#: Seconds for which a browser keeps the cookie: a day.
_COOKIE_SECONDS = 86_400
_TOKEN_PARAMETER = re.compile(rb"(?:^|&)token=")

_UNAUTHORIZED = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>skyrl-modal</title>
<h1>This page requires its token</h1>
<p>Open the address that <code>skyrl-modal ui</code> has printed in its terminal. It ends with
<code>?token=…</code>. Each start of the server has another token.</p></html>
"""


class AccessControl:
    """Permits requests with the token from pages of this server.

    Args:
        app: The application.
        token: The token.
        port: The port of this server.
        drop: Closes the connection of a client by its address.
    """

    def __init__(self, app: Application, *, token: str, port: int, drop: Callable[[Any], None]) -> None:
        self._app = app
        self._token = token
        self._cookie = f"skyrl_modal_{port}"  # cookies do not distinguish ports: two servers have different ones
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._drop = drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # WebSockets are not used
            return
        headers = _headers(scope)
        sender = self._limited(scope, send)
        host = headers.get("host", "")
        if host not in self._hosts or not _is_own_page(headers, host):
            await _answer(sender, 403, "text/plain; charset=utf-8", "The request is not from a page of this server.\n")
        elif scope["path"] == "/" and _TOKEN_PARAMETER.search(scope["query_string"]):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if self._is_token(given):
                cookie = f"{self._cookie}={given}; Path=/; HttpOnly; SameSite=Strict; Max-Age={_COOKIE_SECONDS}"
                await _answer(sender, 303, "text/plain", "", {"location": "/", "set-cookie": cookie})
            else:
                await self._refuse(sender, scope)
        elif self._is_token(_bearer(headers)) or self._is_token(_cookie(headers, self._cookie)):
            await self._app(scope, receive, sender)
        else:
            await self._refuse(sender, scope)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    async def _refuse(self, send: Send, scope: Scope) -> None:
        if scope["path"].startswith("/api/"):
            text = '{"error": {"message": "the token is missing or wrong", "remedy": "Open the printed address."}}'
            await _answer(send, 401, "application/json", text)
        else:
            await _answer(send, 401, "text/html; charset=utf-8", _UNAUTHORIZED)

    def _limited(self, scope: Scope, send: Send) -> Send:
        """Return a function that adds the headers, and closes the connection of a client that does not read."""

        async def limited(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            try:
                await asyncio.wait_for(send(message), _SEND_SECONDS)
            except TimeoutError:
                self._drop(scope.get("client"))

        return limited


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request. A repeated one has all of its values, and so is not equal to any."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        separator = "; " if key == "cookie" else ", "
        found[key] = f"{found[key]}{separator}{text}" if key in found else text
    return found


def _is_own_page(headers: Mapping[str, str], host: str) -> bool:
    """Return whether a request is from a page of this server, or from no page, such as an address that was entered."""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    is_navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return origin in (None, f"http://{host}") and (site in ("none", "same-origin") or is_navigation)


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(headers: Mapping[str, str], name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


async def _answer(send: Send, status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> None:
    body = text.encode()
    fields = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
