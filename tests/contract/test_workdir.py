"""The working directory of the command, and of Ray's workers on every node."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import RaySpec
from tests.conftest import MakeLauncher

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]

DRIVER = "python ../programs/workdir_driver.py"


@pytest.fixture
def workdir_checkout(checkout: Path) -> Path:
    """Return a checkout with a folder to run in, in which modules have the names of others that Ray imports."""
    (checkout / "programs").mkdir()
    shutil.copy(Path(__file__).with_name("workdir_driver.py"), checkout / "programs")
    folder = checkout / "work"
    folder.mkdir()
    (folder / "input.txt").write_text("input")
    for name in ("ray", "random", "selectors"):
        (folder / f"{name}.py").write_text("raise RuntimeError('imported from the working directory')\n")
    return checkout


def facts_of(launcher: MakeLauncher, command: str, nodes: int, **fields: Any) -> dict[str, Any]:
    """Run the driver in the folder ``work``, and return the facts that it prints."""
    output = io.BytesIO()
    gpu = "H100:8" if nodes > 1 else None
    made = launcher(nodes=nodes, gpu=gpu, ray=RaySpec(num_cpus=1), workdir="work", **fields)

    result = made.run(command, output=output, quiet=True)

    text = output.getvalue().decode()
    assert result.returncode == 0, f"{text}\n{result.detail}"
    facts: dict[str, Any] = json.loads(text.splitlines()[-1])
    return facts


@pytest.mark.parametrize("nodes", [1, 2])
def test_workers_run_in_the_workdir(launcher: MakeLauncher, workdir_checkout: Path, nodes: int) -> None:
    """Tasks and actors read and write relative paths in the folder that the command runs in, on every node.

    Modules in this folder with the names of others do not end Ray, although Ray adds it to the path of its workers.
    """
    facts = facts_of(launcher, f"{DRIVER} && test -e actor-0.txt", nodes)

    assert facts["driver"] == "/root/SkyRL/work"
    assert sorted(item["rank"] for item in facts["facts"]) == sorted([*"000", *"111"][: 3 * nodes])
    for item in facts["facts"]:
        assert (item["where"], item["read"], item["written"]) == ("/root/SkyRL/work", "input", "written")


def test_working_dir_of_a_runtime_environment(launcher: MakeLauncher, workdir_checkout: Path) -> None:
    """A working directory that the driver requests from Ray replaces the run's."""
    (workdir_checkout / "programs" / "input.txt").write_text("packaged")
    environment = json.dumps({"working_dir": "/root/SkyRL/programs"})

    facts = facts_of(launcher, DRIVER, 1, env={"RUNTIME_ENV": environment})

    assert facts["driver"] == "/root/SkyRL/work"
    assert {item["read"] for item in facts["facts"]} == {"packaged"}
    assert all("working_dir_files" in item["where"] for item in facts["facts"])


@pytest.mark.parametrize("nodes", [1, 2])
def test_workers_of_uv_run_have_a_copy(launcher: MakeLauncher, workdir_checkout: Path, nodes: int) -> None:
    """Workers of a driver that `uv run` started read relative paths in a copy of the folder, and write into the copy.

    This is how Ray treats `uv run`. The driver itself runs in the folder.
    """
    folder = workdir_checkout / "work"
    for path in folder.glob("*.py"):  # the copy is the first folder on the path of the workers
        path.unlink()
    for project in (folder, workdir_checkout):  # neither requires another Ray than that of the tests
        (project / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.10"\n')
    # All nodes use the environment of the tests: a node without internet access could not download another.
    env = {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_CONFIG": "1"}

    facts = facts_of(launcher, f"uv run --no-sync {DRIVER} && test ! -e actor-0.txt", nodes, env=env)

    assert facts["driver"] == "/root/SkyRL/work"
    assert sorted(item["rank"] for item in facts["facts"]) == sorted([*"000", *"111"][: 3 * nodes])
    for item in facts["facts"]:
        assert (item["read"], item["written"]) == ("input", "written")
        assert "/working_dir_files/" in item["where"]
