"""Runs on this machine whose Ray is not the one that the checkout requires."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal import ImageSpec, Launcher, PipInstall, RaySpec, SpecError
from skyrl_modal.findings import Severity
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.prepare.staging import Preparation

ERROR, WARNING = Severity.ERROR, Severity.WARNING


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return the folder with programs of an environment in which Ray 2.60.0 is installed, with pip."""
    packages = tmp_path / "env/lib/python3.12/site-packages"
    (packages / "ray-2.60.0.dist-info").mkdir(parents=True)
    (packages / "pip").mkdir()
    programs = tmp_path / "env/bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "ray").write_text(f"#!{programs}/python\n")
    (programs / "ray").chmod(0o755)
    return programs


def make_launcher(checkout: Path, environment: Path, **fields: object) -> Launcher:
    """Return a launcher for local runs that find the Ray of the environment."""
    settings = {"backend": "local", "checkout": checkout, "env": {"PATH": str(environment)}, "volumes": [], **fields}
    return Launcher(**settings)  # type: ignore[arg-type]  # any field


def unchecked_plan(launcher: Launcher, command: str) -> Plan:
    """Return the plan of a command with its findings. ``Launcher.plan`` raises those that refuse a run."""
    return Preparation(launcher, str(launcher.backend)).plan(command)


@pytest.mark.parametrize(
    ("command", "severity"),
    [
        ("uv run python train.py", ERROR),
        ("bash scripts/run.sh", ERROR),
        ("cd scripts && ./outer", ERROR),
        (". scripts/outer", ERROR),
        ("python train.py", WARNING),
        ("echo uv run; bash scripts/other.sh", WARNING),
    ],
)
def test_mismatch_is_found(checkout: Path, environment: Path, command: str, severity: Severity) -> None:
    """The mismatch is an error if the command or a script of it calls ``uv run``, else a warning, with the remedy."""
    (checkout / "scripts").mkdir()
    (checkout / "scripts/run.sh").write_text("set -x\nuv run --isolated train.py\n")
    (checkout / "scripts/outer").write_text('#!/bin/bash\nbash "$SKYRL_REPO_ROOT"/scripts/run.sh\n')
    (checkout / "scripts/outer").chmod(0o755)
    (checkout / "scripts/other.sh").write_text("# uv run train.py\npython train.py\n")

    plan = unchecked_plan(make_launcher(checkout, environment), command)

    [finding] = [item for item in plan.findings if item.code == "ray-version"]
    assert finding.severity is severity
    assert "requires ray==2.57.0, but Ray 2.60.0 is installed" in finding.message
    assert f'{environment}/python -m pip install "ray[default]==2.57.0"' in finding.remedy
    assert f"{severity}  the checkout requires" in str(plan)


def test_error_refuses_the_start(checkout: Path, environment: Path, tmp_path: Path) -> None:
    """A command that calls ``uv run`` is refused before anything starts or is copied."""
    launcher = make_launcher(checkout, environment)
    for start in (launcher.run, launcher.submit, launcher.plan):
        with pytest.raises(SpecError) as caught:
            start("uv run python train.py")
        assert (caught.value.field, caught.value.value) == ("ray", "2.60.0")
        assert "Run: " in caught.value.remedy


@pytest.mark.parametrize("required", ["ray==2.60.0", "ray[default]>=2.50", "ray~=2.60.0", "numpy", "ray"])
def test_suitable_version_is_no_finding(checkout: Path, environment: Path, required: str) -> None:
    """An installed Ray that the checkout permits is no finding."""
    (checkout / "pyproject.toml").write_text(f'[project]\ndependencies = ["{required}"]\n')

    plan = unchecked_plan(make_launcher(checkout, environment), "uv run python train.py")

    assert [item.code for item in plan.findings] == []


def test_runs_without_ray_are_not_checked(checkout: Path, environment: Path) -> None:
    """The version does not matter for a run without Ray, and on Modal, that of the image matters."""
    other = ImageSpec(base="rayproject/ray:2.51.1")
    for fields in (
        {"ray": None},
        {"backend": "modal", "ray": RaySpec()},
        {"backend": "modal", "ray": None, "image": other},
    ):
        plan = make_launcher(checkout, environment, **fields).plan("uv run python train.py")
        assert [item.code for item in plan.findings if item.code.endswith("ray-version")] == []


@pytest.mark.parametrize(
    ("inner", "workdir", "is_error"),
    [
        ('dependencies = ["ray==2.60.0"]', "sub", False),
        ('dependencies = ["ray==2.60.0"]', "sub/deep", False),
        ('dependencies = ["ray==2.60.0"]', "other", True),
        ('dependencies = ["ray==2.60.0"]', ".", True),
        ('dependencies = ["numpy"]', "sub", True),
        ('dependencies = ["ray>=2.52,<2.60"]', "sub", True),
    ],
)
def test_project_of_the_workdir_counts(
    checkout: Path, environment: Path, inner: str, workdir: str, is_error: bool
) -> None:
    """The next project above the workdir counts, as for uv; one without Ray may be a member of the checkout's."""
    for folder in ("sub/deep", "other"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "file").touch()
    (checkout / "sub/pyproject.toml").write_text(f'[project]\nname = "sub"\n{inner}\n')

    plan = unchecked_plan(make_launcher(checkout, environment, workdir=workdir), "uv run python train.py")

    assert [item.severity for item in plan.findings] == ([ERROR] if is_error else [])


OTHER_IMAGE = "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"


@pytest.mark.parametrize(
    ("image", "pinned", "expected"),
    [
        (ImageSpec(base=OTHER_IMAGE), "2.57.0", ERROR),
        (ImageSpec(base=f"{OTHER_IMAGE}@sha256:0", pip=["wandb"], apt=["git"]), "2.57.0", ERROR),
        (ImageSpec(base="rayproject/ray:2.51.1-py312-gpu"), "2.57.0", ERROR),
        (ImageSpec(), "2.59.0", ERROR),
        (ImageSpec(base=OTHER_IMAGE), "2.51.1", None),
        (ImageSpec(base="python:3.12"), "2.57.0", None),
        (ImageSpec(base="me/skyrl-ray-fork:2.51.1"), "2.57.0", None),
        (ImageSpec(base=OTHER_IMAGE, pip=["ray[default]==2.57.0"]), "2.57.0", None),
        (ImageSpec(base=OTHER_IMAGE, pip=["skyrl @ git+https://example.invalid/x"]), "2.57.0", None),
        (ImageSpec(base=OTHER_IMAGE, commands=["./install.sh"]), "2.57.0", None),
        (ImageSpec(base=OTHER_IMAGE, steps=[PipInstall(["ray==2.57.0"])]), "2.57.0", None),
        (ImageSpec(), "2.57.0", None),
    ],
)
def test_mismatch_of_an_image(checkout: Path, image: ImageSpec, pinned: str, expected: Severity | None) -> None:
    """An image that is known to contain another Ray is an error with ``uv run``, else a warning."""
    (checkout / "pyproject.toml").write_text(f'[project]\ndependencies = ["ray=={pinned}"]\n')
    launcher = Launcher(checkout=checkout, image=image)
    for command, severity in (("uv run x", expected), ("python x", WARNING if expected else None)):
        findings = [item for item in unchecked_plan(launcher, command).findings if item.code == "image-ray-version"]
        assert [item.severity for item in findings] == ([] if severity is None else [severity])


def test_image_with_another_ray_refuses_the_start(checkout: Path) -> None:
    """A command that calls ``uv run`` is refused before a container starts, with an image that contains the version."""
    with pytest.raises(SpecError) as caught:
        Launcher(checkout=checkout, image=ImageSpec(base=OTHER_IMAGE)).submit("uv run python train.py")

    assert (caught.value.field, caught.value.value) == ("image", OTHER_IMAGE)
    assert 'ImageSpec(base="novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0")' in caught.value.remedy


def test_remedy_without_pip(checkout: Path, environment: Path) -> None:
    """In an environment that has no pip, as uv creates it, the command of the remedy uses uv."""
    (environment.parent / "lib/python3.12/site-packages/pip").rmdir()

    [finding] = unchecked_plan(make_launcher(checkout, environment), "uv run x").findings

    assert f'uv pip install --python {environment}/python "ray[default]==2.57.0"' in finding.remedy


def test_remedy_for_an_old_pin(checkout: Path, environment: Path) -> None:
    """No command is named that installs a Ray which the local backend would refuse."""
    (checkout / "pyproject.toml").write_text('[project]\ndependencies = ["ray==2.51.1"]\n')

    [finding] = unchecked_plan(make_launcher(checkout, environment), "uv run x").findings

    assert "pip install" not in finding.remedy
    assert "ray=None" in finding.remedy


def test_doctor_reports_the_mismatch(checkout: Path) -> None:
    """``skyrl-modal doctor`` reports the mismatch with the same remedy, and which uv is installed."""
    (checkout / "pyproject.toml").write_text('[project]\ndependencies = ["ray==2.52.0"]\n')

    done = subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "doctor"], cwd=checkout, capture_output=True, text=True, check=False
    )

    rows = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert "requires ray==2.52.0" in rows["Ray"]
    assert 'pip install "ray[default]==2.52.0"' in rows["Ray"]
    assert rows["uv"].startswith("ok")
