"""Tests of the steps that build an image, as Modal receives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import (
    AptInstall,
    CopyFiles,
    ImageSpec,
    Launcher,
    MountSpec,
    PipInstall,
    RunCommands,
    SetEnv,
    SetWorkdir,
    SpecError,
    UvSync,
)
from tests.conftest import git
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]
GPU_SPEC = "any"


def lines_of(server: LoopbackModal) -> str:
    """Return the commands of the newest image with all its layers."""
    return "\n".join(server.images[-1].commands)


def assert_in_order(text: str, parts: list[str]) -> None:
    """Fail unless all parts are in the text, one after the other."""
    position = 0
    for part in parts:
        found = text.find(part, position)
        assert found >= 0, f"{part!r} is missing after position {position} of:\n{text}"
        position = found + len(part)


def test_steps_run_in_their_order(server: LoopbackModal, launcher: Make) -> None:
    """Steps of every kind become layers in the order of the list, after apt, pip and commands."""
    steps = [
        RunCommands("echo first"),
        AptInstall(["git", "curl"]),
        SetEnv({"PATH": "/opt/tools:${PATH}"}),
        SetWorkdir("/opt/build"),
        PipInstall("wandb"),
        RunCommands(["echo second", "echo third"]),
    ]
    result = launcher(image=ImageSpec(pip=["rich"], steps=steps, env={"LAST": "1"})).run(
        'echo "$LAST $PATH"', quiet=True, check=True
    )

    assert result.returncode == 0
    expected = [
        "rich",
        "echo first",
        "git curl",
        "ENV PATH",
        "WORKDIR /opt/build",
        "wandb",
        "echo second",
        "echo third",
    ]
    assert_in_order(lines_of(server), [*expected, "ENV LAST"])


def test_a_step_can_be_built_with_a_gpu(server: LoopbackModal, launcher: Make) -> None:
    """The GPU of a step is requested for its layer alone."""
    steps = [RunCommands("echo plain"), RunCommands("nvidia-smi", gpu=GPU_SPEC), PipInstall("flash-attn", gpu="T4")]
    launcher(image=ImageSpec(steps=steps)).run("true", quiet=True, check=True)

    gpus = {
        line.removeprefix("RUN "): image.definition.gpu_config.gpu_type
        for image in server.images
        for line in image.definition.dockerfile_commands
        if line.startswith("RUN ")
    }
    assert gpus["echo plain"] == ""
    assert gpus["nvidia-smi"].lower() == "any"
    assert [gpu for line, gpu in gpus.items() if "flash-attn" in line] == ["T4"]


def test_fast_network_needs_its_library(server: LoopbackModal, launcher: Make) -> None:
    """A cluster on Modal's fast network has the library in its image, and other runs have not."""
    launcher().run("true", quiet=True, check=True)
    assert "libibverbs1" not in lines_of(server)

    launcher(nodes=2, gpu="H100:8", rdma=True).run("true", quiet=True, check=True)
    assert "apt-get install -y libibverbs1" in lines_of(server)


def test_files_are_copied_as_a_mount_has_them(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """A folder that is copied into the image has no ignored files, from the checkout and from this machine."""
    other = checkout.parent / "other"
    (other / "sub").mkdir(parents=True)
    for name in ("kept.txt", "sub/kept.txt", "left.secret", ".gitignore"):
        (other / name).write_text("*.secret\n" if name == ".gitignore" else name)
    git(other, "init", "-q")
    steps = [CopyFiles(str(other), "/opt/other"), CopyFiles(".", "/opt/all"), CopyFiles("train.py", "/opt/train.py")]
    command = "cd /opt && find . -type f -not -path '*/.git/*' | sort; cat train.py"
    output: list[bytes] = []

    launcher(image=ImageSpec(steps=steps)).run(command, output=output.append, check=True)

    text = b"".join(output).decode()
    for path in ("./other/kept.txt", "./other/sub/kept.txt", "./all/train.py", "./all/skyrl-gym/skyrl_gym/__init__.py"):
        assert f"{path}\n" in text
    assert ".secret" not in text
    assert "print('training')" in text


def test_locked_dependencies_are_installed(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """The lock file and local packages are in the image at their final paths; other changes build no layer again."""
    (checkout / "uv.lock").write_text("version = 1\n")
    with open(checkout / "pyproject.toml", "a") as file:
        file.write('[tool.uv.sources]\nskyrl-gym = { path = "./skyrl-gym", editable = true }\n')
    image = ImageSpec(steps=[UvSync(extras=["tinker", "fsdp"], gpu="any")])
    launcher(image=image).run("true", quiet=True, check=True)

    expected = "cd /root/SkyRL && uv sync --frozen --no-install-project --extra=tinker --extra=fsdp"
    assert expected in lines_of(server)
    assert "UV_PROJECT_ENVIRONMENT=/opt/skyrl-venv" in lines_of(server)
    targets = [target for _, target in server.images[-1].copies]
    assert len(targets) == 3

    built = len(server.images)
    (checkout / "train.py").write_text("print('changed')\n")
    launcher(image=image).run("true", quiet=True, check=True)
    assert len(server.images) == built
    (checkout / "uv.lock").write_text("version = 2\n")
    launcher(image=image).run("true", quiet=True, check=True)
    assert len(server.images) > built


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": ImageSpec(steps=[CopyFiles("absent", "/opt/x")])}, "source"),
        ({"image": ImageSpec(steps=[CopyFiles("ignored.secret", "/opt/x")])}, "source"),
        ({"image": ImageSpec(steps=[CopyFiles("/absent/folder", "/opt/x")])}, "source"),
        ({"image": ImageSpec(steps=[UvSync()])}, "steps"),
        ({"image": ImageSpec(steps=[UvSync()]), "mounts": [], "checkout": None}, "steps"),
        ({"image": ImageSpec(steps=[CopyFiles("train.py", "/opt/x")]), "mounts": [], "checkout": None}, "source"),
    ],
)
def test_absent_files_are_errors(server: LoopbackModal, launcher: Make, fields: dict[str, Any], field: str) -> None:
    """A step that copies a file that does not exist is refused before an image is built or an app is created."""
    with pytest.raises(SpecError) as caught:
        launcher(**fields).run("true", quiet=True)

    assert caught.value.field == field
    assert not server.apps
    assert not server.images


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: AptInstall([]), "packages"),
        (lambda: RunCommands([" "]), "commands"),
        (lambda: PipInstall([3]), "packages"),
        (lambda: RunCommands("true", gpu=1), "gpu"),
        (lambda: SetEnv({"a b": "1"}), "env['a b']"),
        (lambda: SetWorkdir("build"), "path"),
        (lambda: CopyFiles("../other", "/opt/x"), "source"),
        (lambda: CopyFiles("", "/opt/x"), "source"),
        (lambda: CopyFiles("x", "opt"), "target"),
        (lambda: ImageSpec(steps=["apt-get update"]), "steps"),
        (lambda: ImageSpec(steps="apt-get update"), "steps"),
        (lambda: ImageSpec(steps=[{"step": "npm"}]), "steps"),
    ],
)
def test_invalid_steps_are_refused(make: Callable[[], object], field: str) -> None:
    """An invalid step is an error where it is written."""
    with pytest.raises(SpecError) as caught:
        make()

    assert caught.value.field == field


def test_mounts_may_follow_copied_files(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """The files of the run are newer than those of the image, at the same paths."""
    steps = [CopyFiles("train.py", "/root/SkyRL/train.py")]
    (checkout / "train.py").write_text("print('of the run')\n")
    output: list[bytes] = []

    launcher(image=ImageSpec(steps=steps), mounts=[MountSpec()]).run("cat train.py", output=output.append, check=True)

    assert b"of the run" in b"".join(output)
