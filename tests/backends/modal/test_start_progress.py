"""What the start of a run reports: the client's uploads and builds, the bytes that were sent, and the phases."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from skyrl_modal import ImageSpec, Launcher
from skyrl_modal.backends.base import Progress
from skyrl_modal.backends.modal.sent_bytes import SentBytes
from skyrl_modal.backends.modal.start_progress import StartProgress
from tests.support.loopback import LoopbackModal


def test_verbose_writes_the_build_of_the_image(
    server: LoopbackModal, launcher: Callable[..., Launcher], capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's log of the build is written before the run is submitted, and nothing of it to standard output."""
    made = launcher(image=ImageSpec(commands=["echo building"]))

    assert made.run("echo output", verbose=True).succeeded

    output, errors = capfd.readouterr()
    lines = [line.removeprefix("skyrl-modal | ") for line in errors.splitlines()]
    build = lines.index("=> Step 1: RUN echo building")
    submission = next(number for number, line in enumerate(lines) if line.startswith("submitted to Modal"))
    assert lines.index("copying the selected files") < build < submission
    assert any(line.startswith("running") for line in lines[submission:])
    assert output == "output\n"


def test_phases() -> None:
    """A build and uploads are displayed together, with the last line of the build, until both have ended."""
    progress = StartProgress("H100:8")
    progress.begin("creating the app")
    shown = [progress.progress()]
    progress.uploaded(1, 0, 2)
    progress.uploaded(2, 1, 3)
    shown.append(progress.progress())
    progress.built("Step 1\n 10 %\r 20 %")
    shown.append(progress.progress())
    progress.upload_ended(1)
    progress.upload_ended(2)
    shown.append(progress.progress())
    progress.built("\rStep 2\n")
    progress.wait_for_container(0.0, is_first=True)
    progress.explain("Modal: no capacity")
    shown.append(progress.progress())
    progress.end()

    phases = [one.phase for one in shown if one is not None]
    details = [one.detail.partition(",")[0] for one in shown if one is not None]
    assert phases == [
        "creating the app", "uploading files", "building and uploading", "building the image", "waiting for H100:8",
    ]  # fmt: skip
    assert details == ["", "1 of 5 files", "1 of 5 files", "20 %", "Modal: no capacity"]
    assert progress.progress() is None
    assert progress.take_lines() == ["Step 1", "Step 2"]
    assert isinstance(shown[-1], Progress)
    assert shown[-1].seconds is not None
    assert shown[-1].seconds > 0


def test_sent_bytes_are_counted() -> None:
    """What a connection of this process has sent is counted, also after it was closed."""
    size = 3_000_000
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        counter = SentBytes()
        before = counter.read()
        with connection:
            client.settimeout(60)
            sent = 0
            while sent < size:
                sent += client.send(bytes(size - sent))
                connection.recv(size)
            after = counter.read()

    if before is None or after is None:
        pytest.skip("this kernel does not count the bytes of a connection")
    assert before.bytes == 0
    assert after.bytes > 0
    assert after.rate > 0
