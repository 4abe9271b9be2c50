"""Who may ask the server, and what its answers permit."""

from __future__ import annotations

import pytest

from tests.web.conftest import Server


def test_token_sets_a_cookie(server: Server) -> None:
    """The printed address leads to the page, with a cookie that scripts and other sites cannot use."""
    first = server.get("/", with_token=False, token=server.token)

    assert (first.status, first.headers["location"]) == (303, "/")
    cookie, *attributes = first.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    page = server.get("/", with_token=False, headers={"Cookie": cookie})
    assert page.status == 200
    assert b"<!doctype html>" in page.body


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic x"},
        {"Cookie": "skyrl_modal=x; a=\xff"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/events", "/assets/app.js", "/?token=wrong", "/none"])
def test_request_without_token_is_refused(server: Server, path: str, headers: dict[str, str]) -> None:
    """Nothing is answered without the token, also no file of the page, and the page explains where it is."""
    answer = server.get(path, with_token=False, headers=headers)

    assert answer.status == 401
    assert "set-cookie" not in answer.headers
    if path == "/":
        assert b"skyrl-modal ui" in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:PORT"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:PORT"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    ],
)
def test_request_of_another_site_is_refused(server: Server, headers: dict[str, str]) -> None:
    """A page of another site gets no answer, also with the token, and if its name leads to this server."""
    sent = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}

    for path in ("/api/runs", "/assets/app.js", f"/?token={server.token}"):
        assert server.get(path, headers=sent).status == 403


def test_own_page_is_answered(server: Server) -> None:
    """Requests of the page itself are answered, by both names of this machine, and a link leads to it."""
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.port}"
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert server.get("/api/info", headers=own).status == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert server.get("/", headers=link).status == 200


@pytest.mark.parametrize("path", ["/", "/api/runs", "/assets/app.js", "/assets/app.css", "/assets/none", "/none"])
def test_each_answer_has_the_policy(server: Server, path: str) -> None:
    """Scripts, styles and connections of other servers, and inline ones, are not permitted."""
    headers = server.get(path).headers

    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py",
        "/assets/..%2fapp.py",
        "/assets/%2e%2e/app.py",
        "/assets/%2fetc%2fpasswd",
        "/assets/__init__.py",
        "/api/runs/..%2f..%2fetc",
        "/api/runs/../../etc/log",
        "/api/runs/%00/log",
        "/api/runs/.hidden/log",
        "/api/runs/latest/log",
        "/docs",
    ],
)
def test_other_files_are_not_sent(server: Server, path: str) -> None:
    """Only the files of the page are sent, and runs are found by their complete ids only."""
    answer = server.get(path)

    assert answer.status == 404
    assert answer.json()["error"]["message"]
    assert b"root:" not in answer.body


def test_only_this_machine_can_connect(server: Server) -> None:
    """The server listens on the loopback interface alone."""
    import psutil

    listening = [each.laddr for each in psutil.Process(server.process.pid).net_connections() if each.status == "LISTEN"]
    assert [tuple(each) for each in listening] == [("127.0.0.1", server.port)]
