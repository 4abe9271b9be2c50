"""Tests of the registry of backends."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from skyrl_modal import BackendUnavailable, Launcher, SpecError
from skyrl_modal.backends import BUILT_IN_BACKENDS, ENTRY_POINT_GROUP, get_backend, installed_backends
from skyrl_modal.doctor import run_checks


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with two backends: "memory", and "broken", which cannot be imported."""
    metadata = tmp_path / "other-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nmemory = tests.run.memory_backend:MemoryBackend\nbroken = no_such_module:Backend\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


def test_built_in_backends_are_entry_points() -> None:
    """The table of built-in backends equals the entry points that the package declares."""
    declared = {item.name: item.value for item in entry_points(group=ENTRY_POINT_GROUP)}

    assert {name: declared[name] for name in BUILT_IN_BACKENDS} == BUILT_IN_BACKENDS


@pytest.mark.parametrize("name", ["modal", "local"])
def test_built_in_backend(name: str) -> None:
    """A built-in backend is returned by its name."""
    assert get_backend(name).name == name


@pytest.mark.usefixtures("other_package")
def test_backend_of_another_package() -> None:
    """A backend of another package is found by its entry point, and a launcher accepts its name."""
    assert get_backend("memory").name == "memory"
    assert installed_backends()[2:] == ["broken", "memory"]
    assert Launcher(backend="memory").backend == "memory"


@pytest.mark.usefixtures("other_package")
def test_broken_backend_is_unavailable() -> None:
    """A backend that cannot be imported raises BackendUnavailable, and is a failed check of the doctor."""
    with pytest.raises(BackendUnavailable, match="no_such_module"):
        get_backend("broken")

    checks = {check.subject: check for check in run_checks()}
    assert not checks["broken"].ok
    assert checks["broken"].optional
    assert checks["memory"].ok


@pytest.mark.parametrize("value", ["mine", "", 3, object()])
def test_unknown_backend_is_refused(value: object) -> None:
    """A launcher refuses a name that is not installed, and an object that is not a backend."""
    with pytest.raises(SpecError) as caught:
        Launcher(backend=value)  # type: ignore[arg-type]  # the refusal is what is tested

    assert caught.value.field == "backend"
