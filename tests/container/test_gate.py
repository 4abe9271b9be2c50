"""The gate before Ray's dashboard lets nobody in without the token, and changes nothing for those who have it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_modal.container import gate as gate_module
from skyrl_modal.container.gate import Gate

TOKEN = "lq3-T0ken_of.this~run"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BIG = hashlib.sha256(b"big").digest() * (20 * 2**20 // 32)


class Upstream:
    """A real web server in place of the dashboard; counts what reaches it."""

    def __init__(self) -> None:
        self.requests = 0
        self.streamed = 0
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), name="upstream", daemon=True)
        self._thread.start()
        ready.wait()

    async def _run(self, ready: threading.Event) -> None:
        app = web.Application(middlewares=[self._count], client_max_size=2**26)
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_get("/ws", self._websocket)
        app.router.add_get("/chunked", self._chunked)
        app.router.add_get("/endless", self._endless)
        app.router.add_get("/sized", self._sized)
        app.router.add_get("/empty", self._empty)
        app.router.add_post("/refused", self._refused)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port: int = runner.addresses[0][1]
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._closing.wait()
        await runner.cleanup()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    @web.middleware
    async def _count(self, request: web.Request, handler: web.Handler) -> web.StreamResponse:
        self.requests += 1
        return await handler(request)

    async def _sized(self, request: web.Request) -> web.Response:
        return web.Response(body=BIG)

    async def _empty(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _refused(self, request: web.Request) -> web.Response:
        return web.Response(status=413, text="too much")

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": [[name.lower(), value] for name, value in request.headers.items()],
                "body": hashlib.sha256(body).hexdigest(),
            },
            headers={"Set-Cookie": "theirs=1"},
        )

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        channel = web.WebSocketResponse(max_msg_size=0)
        await channel.prepare(request)
        async for message in channel:
            await channel.send_str(f"heard {message.data}") if message.type is aiohttp.WSMsgType.TEXT else (
                await channel.send_bytes(message.data[::-1])
            )
        return channel

    async def _chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(BIG), 100_001):
            await response.write(BIG[start : start + 100_001])
        return response

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(2**16))
            self.streamed += 2**16


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with closing(Upstream()) as server:
        yield server


@contextmanager
def opened(target: int, **how: object) -> Iterator[Gate]:
    gate = Gate(target, **{"token": TOKEN, **how})  # type: ignore[arg-type]
    gate.start()
    with closing(gate):
        yield gate


@pytest.fixture(scope="module")
def gate(upstream: Upstream) -> Iterator[Gate]:
    with opened(upstream.port) as found:
        yield found


def ask(
    gate: Gate, target: str = "/echo", method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own; underscores in the headers' names stand for dashes."""
    with closing(http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)) as connection:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()


def raw(gate: Gate, data: bytes) -> bytes:
    """All that is answered to these bytes; a reset ends it as well."""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(2**16):
                answer += piece
        except ConnectionError:
            pass
        return answer


def cookie_of(gate: Gate, **headers: str) -> str:
    return ask(gate, f"/{gate.query}", **headers)[0].headers["Set-Cookie"]


def test_the_printed_url_lets_in_and_loses_its_token(gate: Gate, upstream: Upstream) -> None:
    before = upstream.requests
    response, body = ask(gate, f"/echo{gate.query}&view=jobs&token=&x=%20")

    assert (response.status, response.headers["Location"]) == (303, "/echo?view=jobs&x=%20")
    assert upstream.requests == before
    assert (response.headers["Referrer-Policy"], response.headers["Cache-Control"]) == ("no-referrer", "no-store")
    cookie, *attributes = response.headers["Set-Cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert TOKEN not in cookie + body.decode()

    response, body = ask(gate, response.headers["Location"], Cookie=cookie)
    assert (response.status, json.loads(body)["target"]) == (200, "/echo?view=jobs&x=%20")


def test_no_other_host_can_be_made_the_place_to_go(gate: Gate) -> None:
    for path in ("//evil.example", "/\\evil.example", "/\\/evil.example"):
        assert ask(gate, path + gate.query)[0].headers["Location"] == "/evil.example"


def test_the_cookie_is_kept_to_https_where_that_is_how_people_come(gate: Gate, upstream: Upstream) -> None:
    assert cookie_of(gate, X_Forwarded_Proto="https").endswith("; Secure")
    with opened(upstream.port, https=True) as other:
        assert cookie_of(other).endswith("; Secure")


def test_a_link_on_another_sites_page_works_though_the_browser_keeps_the_cookie_back(gate: Gate) -> None:
    response, _ = ask(gate, f"/echo{gate.query}", Sec_Fetch_Site="cross-site")

    assert (response.status, response.headers["Refresh"], response.headers["Location"]) == (200, "0;url=/echo", None)
    assert "HttpOnly" in response.headers["Set-Cookie"]


@pytest.mark.parametrize("where", ["cross-site", "same-site"])
def test_another_sites_page_gets_nothing_done_by_the_cookie(gate: Gate, where: str) -> None:
    cookie = cookie_of(gate).split(";")[0]

    assert ask(gate, method="POST", body=b"{}", Cookie=cookie, Sec_Fetch_Site=where)[0].status == 401
    assert ask(gate, method="POST", body=b"{}", Cookie=cookie, Sec_Fetch_Site="same-origin")[0].status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Cookie": "a=b"},
        {"Cookie": f"token={TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Digest {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Referer": f"http://127.0.0.1/?token={TOKEN}"},
        {"X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_who_has_no_token_is_told_where_to_find_it(gate: Gate, upstream: Upstream, headers: dict[str, str]) -> None:
    before = upstream.requests
    response, body = ask(gate, "/echo?token=wrong", "POST", b"{}", **headers)

    assert response.status == 401
    assert b"the URL that the run printed" in body
    assert TOKEN.encode() not in body + bytes(response.headers)
    assert upstream.requests == before


def test_what_lets_in_is_not_shown_to_the_dashboard_and_all_else_is(gate: Gate) -> None:
    cookie = cookie_of(gate).split(";")[0]
    response, body = ask(
        gate, "/echo?a=%2F&b", "PUT", b"body",
        Cookie=f"one=1; {cookie}; two=2; skyrl_modal_gate_1=another",
        Authorization="Basic theirs", X_Own="kept", Connection="keep-alive", Host="ray.example",
    )  # fmt: skip
    seen = json.loads(body)

    assert (seen["method"], seen["target"]) == ("PUT", "/echo?a=%2F&b")
    assert seen["body"] == hashlib.sha256(b"body").hexdigest()
    assert sorted(seen["headers"]) == [
        ["accept-encoding", "identity"], ["authorization", "Basic theirs"], ["connection", "close"],
        ["content-length", "4"], ["cookie", "one=1; two=2"], ["host", "ray.example"], ["x-own", "kept"],
    ]  # fmt: skip
    assert response.headers["Set-Cookie"] == "theirs=1"
    assert response.headers.get_all("Connection") == ["close"]

    alone = json.loads(ask(gate, Cookie=cookie)[1])["headers"] + json.loads(ask(gate, **BEARER)[1])["headers"]
    assert not {"cookie", "authorization"} & {name for name, _ in alone}


def test_a_token_may_have_any_characters(upstream: Upstream) -> None:
    with opened(upstream.port, token="a b+c&d=;%é/") as gate:
        assert re.fullmatch(r"\?token=[\w%+.~-]+", gate.query)
        assert ask(gate, f"/echo{gate.query}")[0].status == 303
        assert ask(gate, Cookie=cookie_of(gate).split(";")[0])[0].status == 200
    with pytest.raises(ValueError, match="empty"):
        Gate(1, token="")


def test_a_second_request_on_the_same_connection_is_not_answered(gate: Gate, upstream: Upstream) -> None:
    good = f"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    bad = b"GET /echo?second HTTP/1.1\r\nHost: a\r\n\r\n"
    post = good.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\nabc")
    chunked = post.replace(b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    refused = good.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n").replace(b"/echo", b"/nowhere")

    for first in (good, post, chunked, refused, good.replace(b"/echo", b"/ws")):
        for second in (bad, good):
            before = upstream.requests
            answer = raw(gate, first + second)
            assert (answer.count(b"HTTP/1.1 "), upstream.requests - before) == (1, 1), first
            assert answer.lower().count(b"connection: close") == 1, first

    with closing(http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)) as connection:
        connection.request("GET", "/echo", headers=BEARER)
        assert connection.getresponse().read()
        connection.request("GET", "/echo")  # http.client connects anew, since it was told that the first one ends
        assert b"the run printed" in connection.getresponse().read()


@pytest.mark.parametrize(
    "head",
    [
        b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 3, 3\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: +3\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 0x3\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length:\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding : chunked\r\n",
        b"GET /echo HTTP/1.1\r\nX-One: 1\r\n folded: 2\r\n",
        b"GET /echo HTTP/1.1\r\n X-One: 1\r\n",
        b"GET /echo HTTP/1.1\r\nX-One: 1\nX-Two: 2\r\n",
        b"GET /echo HTTP/1.1\r\nX-One: 1\rX-Two: 2\r\n",
        b"GET /echo HTTP/1.1\r\nX-One: \x00\r\n",
        b"GET /echo HTTP/1.1\r\nno field\r\n",
        b"GET /echo\r\n",
        b"GET  /echo HTTP/1.1\r\n",
        b"GET /echo HTTP/2.0\r\n",
        b"GET /echo HTTP/1.1\nX-One: 1\r\n",
        b"GET http://127.0.0.1/echo HTTP/1.1\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"\r\nGET /echo HTTP/1.1\r\n",
    ],
)
def test_a_header_that_two_servers_could_read_differently_is_refused(
    gate: Gate, upstream: Upstream, head: bytes
) -> None:
    before = upstream.requests
    answer = raw(gate, head + f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode() + b"3\r\nabc\r\n0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert upstream.requests == before


@pytest.mark.parametrize(
    "body",
    [b"x\r\n", b"-1\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3;\n\r\nabc"],
)
def test_a_body_that_is_not_clear_ends_the_connection(gate: Gate, body: bytes) -> None:
    head = f"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"

    assert raw(gate, head.encode() + body) == b""
    assert ask(gate, **BEARER)[0].status == 200


def test_a_header_may_be_neither_too_large_nor_too_late(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert raw(gate, b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000).startswith(b"HTTP/1.1 431 ")
    assert raw(gate, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000).startswith(b"HTTP/1.1 431 ")
    monkeypatch.setattr(gate_module, "HEAD_SECONDS", 0.2)
    assert raw(gate, f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n".encode()).startswith(b"HTTP/1.1 408 ")


def test_strangers_cannot_hold_more_than_some_connections(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "CONNECTIONS", 2)
    held = [socket.create_connection(("127.0.0.1", gate.port)) for _ in range(2)]
    try:
        assert raw(gate, b"GET / HTTP/1.1\r\n\r\n") == b""
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 10
    while not raw(gate, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 401 "):
        assert time.monotonic() < deadline


def test_bodies_of_every_kind_pass_whole(gate: Gate) -> None:
    pieces = [BIG[:1], BIG[:70_000], BIG[:123]]
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()

    assert json.loads(ask(gate, method="POST", body=BIG, **BEARER)[1])["body"] == hashlib.sha256(BIG).hexdigest()
    with closing(http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)) as connection:
        connection.request("POST", "/echo", iter(pieces), BEARER, encode_chunked=True)
        assert json.loads(connection.getresponse().read())["body"] == digest
    chunks = b"5;ext=1\r\nabcde\r\n00\r\nTrailer: x\r\n\r\n"
    head = f"POST /echo HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\nAuthorization: bearer {TOKEN}\r\n\r\n"
    assert hashlib.sha256(b"abcde").hexdigest().encode() in raw(gate, head.encode() + chunks)


@pytest.mark.parametrize("path", ["/chunked", "/sized"])
def test_a_large_answer_comes_whole(gate: Gate, path: str) -> None:
    assert ask(gate, path, **BEARER)[1] == BIG


def test_a_slow_reader_gets_the_end_as_well(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "LINGER_SECONDS", 0.0)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gate.port))
        connection.sendall(f"GET /sized HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        size = 0
        while piece := connection.recv(5000):
            size += len(piece)
    assert size > len(BIG)


def test_an_answer_that_nobody_reads_is_not_gathered(gate: Gate, upstream: Upstream) -> None:
    with socket.create_connection(("127.0.0.1", gate.port)) as connection:
        connection.sendall(f"GET /endless HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        before = -1
        while before != upstream.streamed:  # the buffers between the two fill, and then it stands still
            before = upstream.streamed
            time.sleep(0.2)
        assert 0 < before < 64 * 2**20


def test_answers_without_a_body_end(gate: Gate) -> None:
    for target, method, status in (("/sized", "HEAD", 200), ("/empty", "GET", 204), ("/none", "GET", 404)):
        response, body = ask(gate, target, method, **BEARER)
        assert response.status == status
        assert bool(body) is (status == 404)
    answer = raw(gate, b"HEAD / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"\r\n\r\n")


def test_an_interim_answer_is_passed_on(gate: Gate) -> None:
    head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
    with (
        socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection,
        connection.makefile("rb") as file,
    ):
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert (file.readline(), file.readline()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        connection.sendall(b"abc")
        assert file.readline() == b"HTTP/1.1 200 OK\r\n"


def test_an_answer_that_does_not_wait_for_the_body_arrives(gate: Gate) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)) as connection:
        connection.request("POST", "/refused", BIG, BEARER)
        assert connection.getresponse().read() == b"too much"
    assert b"the run printed" in ask(gate, "/echo", "POST", BIG[: 2**20])[1]


def test_a_websocket_passes_both_ways(gate: Gate) -> None:
    async def talk() -> None:
        cookies = dict([cookie_of(gate).split(";")[0].split("=")])
        url = f"http://127.0.0.1:{gate.port}/ws"
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookies=cookies, cookie_jar=jar) as session:
            async with session.ws_connect(url, max_msg_size=0) as channel:
                for number in range(50):
                    await channel.send_str(str(number))
                    assert await channel.receive_str() == f"heard {number}"
                await channel.send_bytes(BIG)
                assert await channel.receive_bytes() == BIG[::-1]
            assert channel.close_code == 1000
            with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
                await session.ws_connect(url + "x")
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await session.ws_connect(url)

    asyncio.run(asyncio.wait_for(talk(), 60))


@contextmanager
def answered(answer: bytes, method: str = "GET", body: bytes | None = None) -> Iterator[http.client.HTTPConnection]:
    """A request to a dashboard that says just this, and neither ends nor goes on."""
    with socket.create_server(("127.0.0.1", 0)) as listener, opened(listener.getsockname()[1]) as gate:
        connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)
        sender = threading.Thread(target=connection.request, args=(method, "/", body, BEARER))
        sender.start()
        behind, _ = listener.accept()
        with closing(connection), behind:
            behind.recv(2**16)
            behind.sendall(answer)
            if not answer.startswith(b"HTTP") or answer.endswith(b"#"):
                behind.close()
            sender.join()
            yield connection


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 101 \r\n\r\n", b"HTTP/1.1 200 OK\r\nX#"])
@pytest.mark.parametrize("body", [None, BIG])
def test_a_dashboard_that_makes_no_sense_is_said_so(answer: bytes, body: bytes | None) -> None:
    with answered(answer, "POST", body) as connection:
        assert b"no clear answer" in connection.getresponse().read()


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_an_answer_ends_where_it_says_though_the_dashboard_stays(method: str, answer: bytes) -> None:
    with answered(answer, method) as connection:
        whole = b""
        while piece := connection.sock.recv(2**16):
            whole += piece
    assert whole == answer[:-2] + b"Connection: close\r\n\r\n"


def test_a_dashboard_that_is_not_up_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with opened(port) as gate:
        response, body = ask(gate, "/", **BEARER)
        assert response.status == 502
        assert b"not up (yet)" in body
        assert ask(gate, "/")[0].status == 401


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked\r\n\r\n5\r\n", b"Content-Length: 5\r\n\r\n"])
def test_an_answer_that_breaks_off_is_not_taken_for_whole(framing: bytes) -> None:
    with answered(b"HTTP/1.1 200 OK\r\n" + framing + b"ab#") as connection, pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()


def test_the_dashboard_learns_that_the_caller_has_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, opened(listener.getsockname()[1]) as gate:
        connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)
        connection.request("GET", "/", headers=BEARER)
        behind, _ = listener.accept()
        with behind:
            behind.settimeout(20)
            assert TOKEN.encode() not in behind.recv(2**16)
            connection.close()
            assert behind.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_close_leaves_no_thread_no_port_and_no_descriptor(upstream: Upstream) -> None:
    request = f"GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    gate = Gate(upstream.port, token=TOKEN)
    gate.close()  # nothing yet
    gate.start()
    upgrade = request.replace("Host: a", "Host: a\r\nUpgrade: websocket")
    starts = [b"", b"GET /", (request % "/endless").encode(), (upgrade % "/ws").encode()]
    held = [socket.create_connection(("127.0.0.1", gate.port), timeout=20) for _ in starts]
    for connection, start in zip(held, starts, strict=True):
        connection.sendall(start)
    assert held[2].recv(12) == b"HTTP/1.1 200"
    gate.close()
    gate.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gate.port), timeout=20)
    for connection in held:
        try:
            while connection.recv(2**16):
                pass
        except ConnectionResetError:
            pass
        connection.close()
    assert threading.active_count() == threads
    deadline = time.monotonic() + 10
    # The server behind takes a moment to close its own.
    while len(os.listdir("/proc/self/fd")) != descriptors:
        assert time.monotonic() < deadline
        time.sleep(0.01)


NAMES = st.sampled_from(
    [
        "Cookie",
        "cookie",
        "Authorization",
        "AUTHORIZATION",
        "Sec-Fetch-Site",
        "X-Forwarded-Proto",
        "Connection",
        "Upgrade",
    ]
)
PIECES = st.sampled_from(
    [TOKEN, TOKEN[:-1], TOKEN[1:], "COOKIE", "COOKI", "Bearer ", "bearer", "Basic ", "token=", "skyrl_modal_gate_"]
) | st.sampled_from(["; ", "=", ",", '"', "%", "\t", "https", "none", "websocket"])
VALUES = st.lists(PIECES | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=4)).map(
    "".join
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), VALUES)
@settings(max_examples=150, deadline=None)
def test_nothing_but_the_token_lets_in(
    gate: Gate, upstream: Upstream, headers: list[tuple[str, str]], query: str
) -> None:
    good = cookie_of(gate).split(";")[0]
    lines = [f"{name}: {value.replace('COOKIE', good[:-1]).replace('COOKI', good[1:])}" for name, value in headers]
    entitled = any(
        re.fullmatch(rf"(?i:authorization: *bearer)[ \t]+{re.escape(TOKEN)}[ \t]*", line)
        or re.fullmatch(rf"(?i:cookie): (.*;)?\s*{re.escape(good)}\s*(;.*)?", line)
        for line in lines
    )
    target = "/echo?" + re.sub(r"[^\x21-\x7e]", "", query)
    before = upstream.requests
    answer = raw(gate, "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *lines, "", ""]).encode("latin-1"))

    if not entitled:
        assert upstream.requests == before
        with_token = f"token={TOKEN}" in target[6:].split("&")
        assert re.match(rb"HTTP/1\.1 (303|200|400) " if with_token else rb"HTTP/1\.1 (401|400) ", answer)
    assert good.encode() not in answer or b"\r\nSet-Cookie: " in answer


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"GET / HTTP/1.1", b"Host: a", b":", b" ", b"\n"])))
@settings(max_examples=150, deadline=None)
def test_junk_does_not_bring_it_down(gate: Gate, upstream: Upstream, junk: list[bytes]) -> None:
    before = upstream.requests

    assert re.match(rb"HTTP/1\.1 4\d\d ", raw(gate, b"".join(junk) + b"\r\n\r\n"))
    assert upstream.requests == before
    assert ask(gate)[0].status == 401
