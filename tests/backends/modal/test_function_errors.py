"""Tests of errors in the function that Modal calls: each ends the run with a result, and none is waited for."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from skyrl_modal import Launcher, Run, RunState, VolumeSpec
from skyrl_modal.protocol.state import FailureCause
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]
LOST = (RunState.LOST, FailureCause.UNKNOWN)
NOT_STARTED = (RunState.FAILED, FailureCause.NOT_STARTED)

#: A module whose function fails in the ways in which Modal's runtime passes on an error.
MODULE = """
import sys, types
import modal
IS_IMPORTED_BY = "caller" if modal.is_local() else "container"
CONTAINER_IMPORT

class Unserializable(Exception):
    def __reduce__(self):
        raise RuntimeError("cannot be pickled")

def make_absent_class():
    absent = types.ModuleType("not_at_the_caller")
    absent.Absent = type("Absent", (Exception,), {"__module__": absent.__name__})
    sys.modules[absent.__name__] = absent
    return absent.Absent

def fail(case):
    if case == "list":
        return ["no result"]
    if case == "newer":
        return {"schema_version": 10**6}
    raise {
        "disk": lambda: OSError(28, "No space left on device", "/root/data/x"),
        "reset": lambda: ConnectionResetError("reset"),
        "timeout": lambda: TimeoutError("timed out"),
        "memory": lambda: MemoryError(),
        "huge": lambda: ValueError("x" * 3_000_000),
        "absent": lambda: make_absent_class()("only in the container"),
        "unserializable": lambda: Unserializable("x"),
    }[case]()
"""


@pytest.fixture
def fail_in_container(
    server: LoopbackModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    """Return a function that calls a function on Modal, and returns the run that is attached to its call."""
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def call(case: str, container_import: str = "") -> Run:
        module = tmp_path / "modules" / "failing_function.py"
        module.write_text(MODULE.replace("CONTAINER_IMPORT", container_import))
        app = modal.App("failing")
        image = modal.Image.debian_slim().add_local_python_source("failing_function")
        function = app.function(image=image)(importlib.import_module("failing_function").fail)
        with app.run(detach=True):
            return Run.attach(function.spawn(case).object_id)

    yield call
    sys.modules.pop("failing_function", None)


@pytest.mark.parametrize(
    ("case", "expected", "text"),
    [
        ("disk", NOT_STARTED, "No space left on device: '/root/data/x'"),
        ("reset", NOT_STARTED, "ConnectionResetError: reset"),
        ("timeout", NOT_STARTED, "TimeoutError: timed out"),
        ("memory", NOT_STARTED, "MemoryError"),
        ("huge", NOT_STARTED, "ValueError: xxx"),
        ("absent", NOT_STARTED, "not_at_the_caller"),
        ("unserializable", (RunState.LOST, FailureCause.CONTAINER_DIED), "cannot be pickled"),
        ("list", LOST, "found list"),
        ("newer", LOST, "upgrade skyrl_modal"),
    ],
)
def test_error_of_the_function_ends_the_run(
    fail_in_container: Callable[..., Run], case: str, expected: tuple[RunState, FailureCause], text: str
) -> None:
    """An exception that Modal passes on is the result of the run, and is neither raised nor taken for an outage."""
    run = fail_in_container(case)

    result = run.wait(30)

    assert (result.state, result.cause) == expected
    assert result.returncode == 125
    assert text in result.detail
    assert len(result.detail) < 3_000
    assert run.state is result.state


@pytest.mark.slow
@pytest.mark.parametrize("line", ["import absent_module", "raise OSError(5, 'Input/output error')", "x = ("])
def test_error_of_an_import_ends_the_run(fail_in_container: Callable[..., Run], line: str) -> None:
    """A module that the container cannot import, for example since its Python is too old, ends the run."""
    run = fail_in_container("list", f"if IS_IMPORTED_BY == 'container': exec({line!r})")

    result = run.wait(60)

    assert result.state in (RunState.FAILED, RunState.LOST)
    assert result.returncode == 125
    assert result.detail


@pytest.mark.parametrize("fields", [{}, pytest.param({"nodes": 2, "gpu": "H100:8"}, marks=pytest.mark.slow)])
def test_error_of_the_launcher_in_the_container(
    server: LoopbackModal,
    launcher: Make,
    volume: VolumeSpec,
    capfd: pytest.CaptureFixture[str],
    fields: dict[str, Any],
) -> None:
    """An error of the launcher's own code in the container has a cause, the place of the log, and a traceback there."""
    folder = server.volume(volume.name, create=True)
    (folder / ".skyrl_modal").mkdir()
    (folder / ".skyrl_modal" / "runs").touch()  # where a folder should be

    result = launcher(**fields).run("true", output=io.BytesIO())

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.SYSTEM_ERROR
    assert "Not a directory" in result.detail
    assert result.log_path
    messages = capfd.readouterr().err
    assert "NotADirectoryError" in messages
    assert "modal_entrypoint.py" in messages
