"""A server in a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest

from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.index import IndexRecord, RunIndex

pytest.importorskip("starlette", reason="the extra [ui] is not installed")


class Answer:
    """An answer of the server.

    Attributes:
        status: Its status.
        headers: Its headers, with names in lower case.
        body: Its content.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        """Return the content as standard JSON, which has no NaN."""
        return json.loads(self.body, parse_constant=pytest.fail)


class Server:
    """A server.

    Attributes:
        port: Its port.
        token: Its token.
        process: Its process.
    """

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "skyrl_modal", "ui", "--json", "--no-browser", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]
        address, _, self.token = self.url.partition("/?token=")
        self.port = int(address.rpartition(":")[2])

    def get(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        with_token: bool = True,
        **query: Any,
    ) -> Answer:
        """Send a request. A header with an empty value is left out."""
        sent = {"Authorization": f"Bearer {self.token}"} if with_token else {}
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = f"{path}?{urlencode(query, doseq=True)}" if query else path
            connection.putrequest(method, target, skip_host="Host" in sent)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    @contextmanager
    def events(self, *run_ids: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Follow runs: yield the names and the data of events."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            "GET",
            f"/api/events?{urlencode({'run': run_ids}, doseq=True)}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()

        def read() -> Iterator[tuple[str, Any]]:
            name = ""
            while line := answer.readline().decode():
                field, _, value = line.rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value, parse_constant=pytest.fail)

        try:
            yield read()
        finally:
            answer.close()
            connection.close()

    def stop(self) -> str:
        """End the server, and return what it has written to standard error."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=60)
        return str(errors)


@pytest.fixture(scope="module")
def server(isolated_user_folders: None) -> Iterator[Server]:
    """Return a server without permission to change anything. It must not write errors."""
    started = Server()
    yield started
    assert started.stop() == ""


@pytest.fixture(scope="session")
def add_run(isolated_user_folders: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Return a function that writes the records of a run on this machine that has ended, without executing it."""
    root = tmp_path_factory.mktemp("runs")

    def add(
        run_id: str, *, state: RunState = RunState.SUCCEEDED, backend: str = "local", output: bytes = b"", **values: Any
    ) -> RunFolder:
        folder = RunFolder(root / run_id)
        folder.create()
        job = Job(
            **{"run_id": run_id, "command": "true", "workdir": "/", "run_folder": str(root / run_id), **values},
            created_at=f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T00:00:00+00:00",
        )
        returncode = 0 if state is RunState.SUCCEEDED else 1
        started = job.created_at
        folder.write_result(
            RunResultRecord(
                run_id=run_id, state=state, returncode=returncode, attempts=1, started_at=started, duration=3.0
            )
        )
        folder.output.write_bytes(output)
        RunIndex().add(IndexRecord(job=job, backend=backend, handle={"pid": 1, "run_folder": str(folder.path)}))
        return folder

    return add
