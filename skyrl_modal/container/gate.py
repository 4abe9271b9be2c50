"""The gate before Ray's dashboard: a reverse proxy that lets in only those who have the run's token.

Whoever reaches the dashboard can have code run, for it takes jobs; and a tunnel's URL is open to all the world. A front
may put requests of different people on one connection, so a connection carries one request here and then ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
import socket
import threading
from asyncio import StreamReader, StreamWriter
from urllib.parse import unquote_to_bytes, urlencode

#: The most bytes of a header block, and of a body that are held at once.
LIMIT = 1 << 16
#: How long a request's header block may take.
HEAD_SECONDS = 10.0
#: How long a connection is read on after the answer: bytes that come unread reset it, and the answer could be lost.
LINGER_SECONDS = 1.0
#: Connections at once: strangers must not use up the process's descriptors.
CONNECTIONS = 256

_COOKIE = b"skyrl_modal_gate_"
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[\x21-\x7e]*) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_OF_ONE_CONNECTION = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"}

_Fields = list[tuple[bytes, bytes]]
#: How many bytes a body has: infinite where the connection's end ends it, None where chunks say it.
_Length = float | None


class _Answer(Exception):
    """An answer of the gate's own instead of the dashboard's."""

    def __init__(self, status: bytes, text: bytes, *fields: tuple[bytes, bytes]) -> None:
        super().__init__(status)
        plain = (b"Content-Type", b"text/plain"), (b"Content-Length", b"%d" % len(text)), (b"Connection", b"close")
        # No referrer: it would tell the dashboard the URL with the token.
        private = (b"Cache-Control", b"no-store"), (b"Referrer-Policy", b"no-referrer")
        self.head, self.body = _joined(b"HTTP/1.1 " + status, [*plain, *private, *fields]), text


def _joined(first: bytes, fields: _Fields) -> bytes:
    return b"\r\n".join([first, *(name + b": " + value for name, value in fields), b"\r\n"])


def _values(fields: _Fields, wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name.lower() == wanted]


async def _read_head(reader: StreamReader) -> tuple[bytes, _Fields]:
    """The first line and the fields; ValueError where two readers could take it for different things."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    found = [_FIELD.fullmatch(line) for line in lines]
    if None in found:
        raise ValueError("not a header field")
    return first, [(match[1], match[2].strip(b" \t")) for match in found if match]


def _length(fields: _Fields, unsaid: float) -> _Length:
    """How long the body is; ValueError where two readers could find different ends of it."""
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if codings and not lengths and [coding.lower() for coding in codings] == [b"chunked"]:
        return None
    if codings or len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]{1,15}", length) for length in lengths):
        raise ValueError("no clear length")
    return int(lengths[0]) if lengths else unsaid


async def _read_request(reader: StreamReader) -> tuple[re.Match[bytes], _Fields, _Length]:
    try:
        first, fields = await asyncio.wait_for(_read_head(reader), HEAD_SECONDS)
        request, length = _REQUEST.fullmatch(first), _length(fields, 0)
    except asyncio.LimitOverrunError:
        raise _Answer(b"431 Request Header Fields Too Large", b"The header is too large.\n") from None
    except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
        raise _Answer(b"408 Request Timeout", b"The header took too long.\n") from None
    except ValueError:
        request = None
    if request is None or (length is None and request[3] == b"0"):
        raise _Answer(b"400 Bad Request", b"This is not clear HTTP/1.\n")
    return request, fields, length


async def _copy(reader: StreamReader, writer: StreamWriter, length: _Length) -> None:
    """Pass a body on piece by piece, and nothing that comes after it."""
    if length is not None:
        while length and (data := await reader.read(int(min(length, LIMIT)))):
            length -= len(data)
            writer.write(data)
            await writer.drain()
        return  # what breaks off here, breaks off there: the connection ends with it
    size = -1
    while size:
        match = _CHUNK.fullmatch(await reader.readuntil(b"\r\n"))
        if match is None:
            raise ValueError("not a chunk")
        size = int(match[1], 16)
        writer.write(b"%x\r\n" % size)
        await _copy(reader, writer, size)
        # After the last chunk may come trailers, which may be left out.
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            if size or _FIELD.fullmatch(line[:-2]) is None:
                raise ValueError("not a chunk's end")
        writer.write(b"\r\n")
    await writer.drain()


async def _discard(reader: StreamReader) -> None:
    """Read on until the other side has gone."""
    while await reader.read(LIMIT):
        pass


async def _up(reader: StreamReader, onward: StreamWriter, length: _Length, switched: asyncio.Event | None) -> None:
    """Pass on what the caller sends; returns when the caller has gone, and one that ends its sending counts as gone."""
    await _copy(reader, onward, length)
    if switched is not None:
        await switched.wait()
        await _copy(reader, onward, math.inf)
    await _discard(reader)


async def _down(back: StreamReader, writer: StreamWriter, method: bytes, switched: asyncio.Event | None) -> None:
    """Pass the answer on, with the interim ones before it."""
    code = 100
    while code < 200:
        try:
            first, fields = await _read_head(back)
            match = _STATUS.fullmatch(first)
            if match is None or ((code := int(match[1])) == 101 and switched is None):
                raise ValueError("not an answer")
            length = 0 if method == b"HEAD" or code < 200 or code in (204, 304) else _length(fields, math.inf)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            raise _Answer(b"502 Bad Gateway", b"The dashboard gave no clear answer.\n") from None
        if code == 101 and switched is not None:
            code, length = 200, math.inf  # a WebSocket from here on
            switched.set()
        else:
            fields = [field for field in fields if field[0].lower() not in _OF_ONE_CONNECTION]
            fields += [(b"Connection", b"close")] if code >= 200 else []
        writer.write(_joined(first, fields))
        await writer.drain()
    await _copy(back, writer, length)


class Gate:
    """Lets requests through to a port of this machine where they bring the token.

    It comes in the URL, once, and is exchanged for a cookie; or, for programs, as ``Authorization: Bearer TOKEN``
    (``RAY_JOB_HEADERS='{"Authorization": "Bearer TOKEN"}' ray job submit ...``). What is behind sees neither.

    Args:
        target_port: The port on 127.0.0.1 that is guarded; nothing needs to listen there yet.
        token: What lets in.
        host: The IPv4 address to listen on.
        port: The port to listen on; 0 for a free one.
        https: Whether it is reached by HTTPS only, as behind a tunnel that ends TLS; the cookie is kept to HTTPS then.

    Attributes:
        port: Where it listens, from :meth:`start` on.
        query: What to append to its URL to get in.

    Raises:
        ValueError: The token is empty.
    """

    def __init__(
        self, target_port: int, *, token: str, host: str = "127.0.0.1", port: int = 0, https: bool = False
    ) -> None:
        if not token:
            raise ValueError("an empty token would let everybody in")
        self.port = port
        self.query = "?" + urlencode({"token": token})
        self._target_port, self._token, self._host, self._https = target_port, token.encode(), host, https
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. OSError where the port is taken."""
        listener = socket.create_server((self._host, self.port))
        self.port = listener.getsockname()[1]
        # Not the token itself, since a cookie cannot hold every character. The port, since cookies know no ports.
        self._cookie = _COOKIE + b"%d=" % self.port + hashlib.sha256(b"gate " + self._token).hexdigest().encode()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listener, ready)), name="gate", daemon=True
        )
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """End every connection and the thread; nothing listens when this returns."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._thread = None

    async def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        server = await asyncio.start_server(self._connected, sock=listener, limit=LIMIT)
        await self._closing.wait()
        server.close()  # asyncio.run then cancels the tasks of the connections

    def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._closing.is_set() or len(self._tasks) >= CONNECTIONS:
            writer.transport.abort()
            return
        # Of our own: asyncio's task for a connection logs its cancelling as an error in Python 3.12.1.
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # drain() then waits until all is sent
        try:
            await self._serve_one(reader, writer)
            writer.write_eof()
            await asyncio.wait_for(_discard(reader), LINGER_SECONDS)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.TimeoutError):  # noqa: UP041 - 3.10
            pass  # a connection broke, or somebody talked nonsense in the middle of a body
        finally:
            writer.transport.abort()

    async def _serve_one(self, reader: StreamReader, writer: StreamWriter) -> None:
        method = b""
        try:
            request, fields, length = await _read_request(reader)
            method = request[1]
            fields = self._admitted(request[2], fields)
            await self._exchange(reader, writer, request, fields, length)
        except _Answer as answer:
            writer.write(answer.head if method == b"HEAD" else answer.head + answer.body)
            await writer.drain()

    def _admitted(self, target: bytes, fields: _Fields) -> _Fields:
        """The fields without what let the request in."""
        path, _, query = target.partition(b"?")
        pieces = query.split(b"&")
        tokens = [piece for piece in pieces if piece.startswith(b"token=")]
        # A browser keeps back a Strict cookie where another site's page began the request, and also from the address
        # that such a request is sent on to. So a click on the URL in a notebook is sent on by a page of our own.
        foreign = not {b"cross-site", b"same-site"}.isdisjoint(_values(fields, b"sec-fetch-site"))
        if any(hmac.compare_digest(unquote_to_bytes(piece[6:].replace(b"+", b" ")), self._token) for piece in tokens):
            rest = b"&".join(piece for piece in pieces if piece not in tokens)
            place = b"/" + path.lstrip(b"/\\") + (b"?" + rest if rest else b"")  # // would begin another host's URL
            https = self._https or b"https" in _values(fields, b"x-forwarded-proto")
            cookie = self._cookie + b"; Path=/; HttpOnly; SameSite=Strict" + (b"; Secure" if https else b"")
            onward = (b"Refresh", b"0;url=" + place) if foreign else (b"Location", place)
            raise _Answer(b"200 OK" if foreign else b"303 See Other", b"Come in.\n", (b"Set-Cookie", cookie), onward)
        cookies = [piece.strip() for value in _values(fields, b"cookie") for piece in value.split(b";")]
        bearers = [
            value for value in _values(fields, b"authorization")
            if value[:7].lower() == b"bearer " and hmac.compare_digest(value[7:].strip(), self._token)
        ]  # fmt: skip
        # Not by the cookie where another site's page asks: one on a sibling of our host is not foreign to SameSite.
        if not bearers and (foreign or not any(hmac.compare_digest(piece, self._cookie) for piece in cookies)):
            text = b"Open this by the URL that the run printed, with its ?token=...\n"
            raise _Answer(b"401 Unauthorized", text, (b"WWW-Authenticate", b"Bearer"))
        kept = [(name, value) for name, value in fields if name.lower() != b"cookie" and value not in bearers]
        others = b"; ".join(piece for piece in cookies if not piece.startswith(_COOKIE))
        return [*kept, (b"Cookie", others)] if others else kept

    async def _exchange(
        self, reader: StreamReader, writer: StreamWriter, request: re.Match[bytes], fields: _Fields, length: _Length
    ) -> None:
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", self._target_port, limit=LIMIT)
        except OSError:
            text = b"The dashboard is not up (yet). It takes up to a minute from the start of Ray.\n"
            raise _Answer(b"502 Bad Gateway", text) from None
        upgrades = [value.lower() for value in _values(fields, b"upgrade")]
        switched = asyncio.Event() if (request[1], length, upgrades) == (b"GET", 0, [b"websocket"]) else None
        kept = [field for field in fields if field[0].lower() not in _OF_ONE_CONNECTION]
        kept += (
            [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
            if switched is not None
            else [(b"Connection", b"close")]
        )
        onward.write(_joined(request[0], kept))
        down = asyncio.create_task(_down(back, writer, request[1], switched))
        up = asyncio.create_task(_up(reader, onward, length, switched))
        try:
            await asyncio.wait([down, up], return_when=asyncio.FIRST_COMPLETED)
            await (down if down.done() else up)
        finally:
            onward.transport.abort()
            down.cancel()
            up.cancel()
            await asyncio.gather(down, up, return_exceptions=True)
