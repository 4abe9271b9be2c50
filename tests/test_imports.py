"""Tests of what is loaded: a module that is not needed would delay every script and every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex

#: Executes code, and prints the modules that it has loaded as the last line of standard output.
PROGRAM = """
import atexit, sys
before = set(sys.modules)
atexit.register(lambda: print("", *(set(sys.modules) - before)))
{code}
"""
COMMAND = """
sys.argv = ["skyrl-modal", {arguments}]
from skyrl_modal.cli import main
main()
"""

#: Modules that take long, and that neither a declaration nor a local run without Ray needs.
HEAVY = {
    "asyncio",
    "concurrent",
    "difflib",
    "grpclib",
    "logging",
    "modal",
    "multiprocessing",
    "numpy",
    "ray",
    "rich",
    "ssl",
}
#: Modules that only a started run needs, or one that is planned.
OF_RUNS = {
    "hashlib", "skyrl_modal.container", "skyrl_modal.gitfiles", "skyrl_modal.launching", "skyrl_modal.prepare",
    "skyrl_modal.snapshots", "tomllib",
}  # fmt: skip
#: Modules that a declaration needs.
OF_DECLARATIONS = {"attr", "skyrl_modal.launcher", "skyrl_modal.spec.run_spec"}
OF_BACKENDS = {"skyrl_modal.backends.base", "skyrl_modal.backends.local", "skyrl_modal.backends.modal"}


def loaded_modules(code: str) -> set[str]:
    """Return the modules that a new interpreter loads for some code, with the packages that contain them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(code=code)], capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()[-1].split()
    return {name.rsplit(".", count)[0] for name in names for count in range(name.count(".") + 1)}


def test_declaration_loads_no_run() -> None:
    """Importing Launcher loads neither what executes runs, nor the command line, nor the steps of images."""
    loaded = loaded_modules("from skyrl_modal import Launcher")

    others = {"click", "json", "skyrl_modal.protocol", "skyrl_modal.spec.image_steps", "subprocess", "tempfile"}
    assert "skyrl_modal.launcher" in loaded
    assert loaded & (HEAVY | OF_RUNS | OF_BACKENDS | others) == set()


def test_help_loads_no_launcher() -> None:
    """The help text of the command line is printed without the launcher, and without attrs."""
    loaded = loaded_modules(COMMAND.format(arguments='"--help"'))

    assert "skyrl_modal.cli.commands" in loaded
    assert loaded & (HEAVY | OF_RUNS | OF_BACKENDS | OF_DECLARATIONS | {"skyrl_modal.run", "subprocess"}) == set()


def test_options_load_no_run() -> None:
    """The help text of a command with the launcher's options needs the launcher only."""
    loaded = loaded_modules(COMMAND.format(arguments='"run", "--help"'))

    assert "skyrl_modal.launcher" in loaded
    assert loaded & (HEAVY | OF_RUNS | OF_BACKENDS | {"skyrl_modal.run"}) == set()


def test_list_of_runs_loads_no_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of runs loads the backends of the listed runs, and not what is declared, planned or copied for a run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    job = Job(run_id="r1", command="true", workdir="/", run_folder="/root/x", created_at="2026-01-01T00:00:00+00:00")
    RunIndex().add(IndexRecord(job=job, backend="local", handle={"pid": 1, "run_folder": str(tmp_path)}))

    loaded = loaded_modules(COMMAND.format(arguments='"ps"'))

    unneeded = (OF_RUNS | OF_DECLARATIONS | {"skyrl_modal.backends.modal"}) - {"attr"}
    assert "skyrl_modal.backends.local.execution" in loaded
    assert loaded & (HEAVY | unneeded) == set()


def test_local_run_loads_no_other_backend(checkout: Path) -> None:
    """A local run loads neither Modal's client, nor the container's code, nor what only other methods need."""
    code = (
        "from skyrl_modal import Launcher\n"
        f"Launcher(backend='local', ray=None, checkout={str(checkout)!r}).run('true', quiet=True, check=True)"
    )
    loaded = loaded_modules(code)

    others = {
        "attr",
        "inspect",
        "platformdirs",
        "secrets",
        "skyrl_modal.backends.modal",
        "skyrl_modal.container",
        "skyrl_modal.doctor",
        "skyrl_modal.spec.image_steps",
    }
    others |= {
        "skyrl_modal.prepare.restore",
        "skyrl_modal.run.batch",
        "skyrl_modal.run.cleanup",
        "skyrl_modal.views.table",
    }
    assert "skyrl_modal.backends.local.execution" in loaded
    assert loaded & (HEAVY | others) == set()
