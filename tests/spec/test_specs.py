"""A wrong value fails where it is written, with its field, itself and what would do."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import (
    CheckoutNotFound,
    ImageSpec,
    Launcher,
    MountSpec,
    RaySpec,
    SecretSpec,
    SpecError,
    VolumeSpec,
)
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.duration import parse_duration


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"backend": "kubernetes"}, "backend='kubernetes'"),
        ({"backend": 3}, "backend=3"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"timeout": "1h later"}, "timeout='1h later'"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": True}, "timeout=True"),
        ({"grace": 0}, "grace=0"),
        ({"gpu": "A100:x"}, "gpu='A100:x'"),
        ({"gpu": "A100:0"}, "gpu='A100:0'"),
        ({"gpu": ""}, "gpu=''"),
        ({"gpu": []}, "gpu=\\[\\]"),
        ({"gpu": "A1000"}, "gpu='A1000'.*A100"),
        ({"gpu": ["H100:8", 8]}, "gpu="),
        ({"nodes": 0}, "nodes=0"),
        ({"nodes": 2.0}, "nodes=2.0"),
        ({"rdma": True}, "rdma=True.*nodes=2"),
        ({"nodes": 2, "rdma": "yes"}, "rdma='yes'"),
        ({"retries": -1}, "retries=-1"),
        ({"cpu": 0}, "cpu=0"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"workdir": "../elsewhere"}, "workdir='../elsewhere'"),
        ({"workdir": ""}, "workdir=''"),
        ({"app_name": "my app"}, "app_name='my app'"),
        ({"env": {"A B": "1"}}, "env\\['A B'\\]"),
        ({"env": {"A": None}}, "env\\['A'\\]"),
        ({"env": "A=1"}, "env='A=1'"),
        ({"image": "ubuntu"}, "image='ubuntu'"),
        ({"ray": True}, "ray=True"),
        ({"volumes": [VolumeSpec(), VolumeSpec(name="b")]}, "volumes='/root/data'"),
        ({"mounts": [MountSpec(remote_path="/root/data/x")]}, "mounts='/root/data/x'.*mount beside it"),
        ({"mounts": [MountSpec(remote_path="/root/data")]}, "mounts='/root/data'"),
        ({"mounts": [MountSpec(), MountSpec(local_path="/tmp")]}, "mounts='/root/SkyRL'"),
        ({"mounts": ["/tmp"]}, "mounts="),
        ({"volumes": "data"}, "volumes='data'"),
    ],
)
def test_a_wrong_field_of_the_launcher(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        Launcher(**fields)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: VolumeSpec(mount_path="data"), "mount_path='data'"),
        (lambda: VolumeSpec(mount_path="/root/../etc"), "mount_path="),
        (lambda: VolumeSpec(mount_path="/"), "mount_path='/'"),
        (lambda: VolumeSpec(name="a/b"), "name='a/b'"),
        (lambda: VolumeSpec(version=3), "version=3"),
        (lambda: MountSpec(remote_path="SkyRL"), "remote_path='SkyRL'"),
        (lambda: MountSpec(local_path=3), "local_path=3"),
        (lambda: MountSpec(exclude=[1]), "exclude="),
        (lambda: ImageSpec(base="two words"), "base='two words'"),
        (lambda: ImageSpec(python="3"), "python='3'"),
        (lambda: ImageSpec(pip=3), "pip=3"),
        (lambda: RaySpec(port=80), "port=80"),
        (lambda: RaySpec(port=16379), "port=16379.*workers"),
        (lambda: RaySpec(num_cpus=0), "num_cpus=0"),
        (lambda: RaySpec(object_store_memory=1), "object_store_memory=1"),
        (lambda: RaySpec(start_timeout="never"), "start_timeout='never'"),
        (lambda: RaySpec(on_worker_loss="go on"), "on_worker_loss=.go on.*wait"),
        (lambda: SecretSpec("two words"), "name='two words'"),
    ],
)
def test_a_wrong_field_of_a_spec(make: Any, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        make()


def test_a_secret_given_by_value_is_not_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        Launcher(secrets=["WANDB_API_KEY=hunter2"])

    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_an_unknown_gpu_is_a_warning_and_modal_decides() -> None:
    with pytest.warns(UserWarning, match="Z900"):
        assert Launcher(gpu="Z900:2").gpu == "Z900:2"


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(1, 100))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    delta = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

    assert parse_duration(f"{days}d{hours}h {minutes}m{seconds}s") == parse_duration(delta) == delta.total_seconds()
    assert parse_duration(delta.total_seconds()) == delta.total_seconds()


def test_evolve_makes_variants_and_leaves_the_first_alone() -> None:
    first = Launcher(backend="local", gpu=["H100:8", "A100-80GB:8"], timeout="90m", env={"A": 1})
    second = attrs.evolve(first, timeout="2h")

    assert (first.timeout, second.timeout, second.env, second.gpu) == (5400, 7200, {"A": "1"}, first.gpu)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.timeout = 1  # type: ignore[misc]  # that it is refused is what is shown


def test_defaults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Launcher().gpu, Launcher().app_name, Launcher().backend) == ("L4:1", "my_skyrl_app", "modal")
    monkeypatch.setenv("MODAL_GPU", "H100:2")
    monkeypatch.setenv("MODAL_APP_NAME", "mine")
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")

    assert (Launcher().gpu, Launcher().app_name, Launcher().backend) == ("H100:2", "mine", "local")


@pytest.mark.parametrize(("command", "named"), [("", "command=''"), ("  \n", "command="), ([], "command=''")])
def test_an_empty_command(checkout: Path, command: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        Launcher(backend="local", checkout=checkout).run(command)


def test_a_workdir_that_is_not_among_what_goes(checkout: Path) -> None:
    (checkout / "empty").mkdir()

    with pytest.raises(SpecError, match=r"workdir='nowhere'.*nowhere/"):
        Launcher(backend="local", checkout=checkout, workdir="nowhere").plan("true")


def test_a_mounted_folder_that_is_not_there(checkout: Path, tmp_path: Path) -> None:
    mounts = [MountSpec(), MountSpec(local_path=tmp_path / "none", remote_path="/root/none")]

    with pytest.raises(SpecError, match="none"):
        Launcher(backend="local", checkout=checkout, mounts=mounts).plan("true")


def test_the_checkout_is_found_upwards_and_by_variable(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "skyrl")
    assert Launcher(backend="local").plan("true").job.checkout["root"] == str(checkout)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(checkout / "skyrl-gym"))
    assert Launcher(backend="local").plan("true").job.checkout["root"] == str(checkout)


def test_the_checkout_is_found_from_the_calling_script(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "launch.py"
    script.write_text("from skyrl_modal import Launcher; print(Launcher(backend='local').plan('true').job.repo_root)")

    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout == "/root/SkyRL\n"


def test_no_checkout_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckoutNotFound) as caught:
        Launcher(backend="local").run("true")
    assert str(tmp_path) in str(caught.value)
    assert "SKYRL_REPO_ROOT" in str(caught.value)

    with pytest.raises(CheckoutNotFound):
        Launcher(checkout=tmp_path)


def test_the_plan_has_the_checkouts_state_and_the_image_of_its_ray(checkout: Path) -> None:
    (checkout / "train.py").write_text("edited")
    (checkout / "new.py").write_text("")

    plan = Launcher(checkout=checkout, backend="modal", gpu="A100:4").plan("true")

    assert plan.job.image["base"] == "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0"
    assert plan.job.checkout["changed"] == 2
    assert plan.job.gpus == 4
    assert "2 files changed" in str(plan)
    assert not plan.warnings


def test_a_ray_that_no_image_has_is_warned_of(checkout: Path) -> None:
    text = (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(text.replace("2.57.0", "9.9.9"))

    plan = Launcher(checkout=checkout, backend="modal").plan("true")

    assert plan.job.image["base"] == "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"
    assert any("9.9.9" in warning for warning in plan.warnings)


def test_a_plan_starts_nothing(checkout: Path) -> None:
    before = sorted(os.listdir(checkout))

    plan = Launcher(checkout=checkout, backend="local").plan("touch /root/SkyRL/x")

    assert sorted(os.listdir(checkout)) == before
    assert Job.from_json(plan.job.to_json()) == plan.job


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("ray start --head && python train.py", "the command calls `ray start`"),
        ("cd x; ray   stop", "the command calls `ray stop`"),
        ("bash scripts/run.sh", "scripts/run.sh calls `ray start`"),
        ("python train.py # ray start", "the command calls `ray start`"),
        ("bash scripts/fine.sh", ""),
        ("echo array start; ray starting; ray status", ""),
        ("echo 'not closed", ""),
    ],
)
def test_a_ray_of_the_commands_own_is_warned_of(checkout: Path, command: str, told: str) -> None:
    (checkout / "scripts").mkdir()
    (checkout / "scripts" / "run.sh").write_text("#!/bin/bash\nset -e\n  ray start --head\n")
    (checkout / "scripts" / "fine.sh").write_text("# ray start is the launcher's\npython train.py\n")

    notes = Launcher(checkout=checkout, backend="local").plan(command).warnings

    assert [note for note in notes if "ray st" in note and note.startswith(told)] == [
        note for note in notes if "ray st" in note
    ]
    assert any("ray st" in note for note in notes) == bool(told)


def test_a_ray_of_the_commands_own_is_fine_without_the_launchers(checkout: Path) -> None:
    plan = Launcher(checkout=checkout, backend="local", ray=None).plan("ray start --head")

    assert not any("ray start" in note for note in plan.warnings)


def test_nodes_without_ray_are_warned_of(checkout: Path) -> None:
    plan = Launcher(checkout=checkout, backend="local", ray=None, nodes=2).plan("true")

    assert any("only rank 0 runs the command" in note for note in plan.warnings)
    assert ("nodes", "2") in plan.lines()


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys; import skyrl_modal; "
        "print([name for name in ('modal', 'attrs', 'click', 'rich', 'gitignore_parser') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
