"""Tests of the requests that a run sends to Modal, as the control plane recorded them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from modal_proto import api_pb2

from skyrl_modal import ImageSpec, Launcher, MountSpec, SecretSpec, VolumeSpec
from skyrl_modal.protocol.leases import MAX_REPLACEMENTS
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]


def uploaded_digests(server: LoopbackModal) -> list[str]:
    """Return the digests of the files that were uploaded. A question whether a file exists has no content."""
    return [
        request.sha256_hex
        for request in server.requests("MountPutFile")
        if request.WhichOneof("data_oneof") is not None
    ]


def test_run_creates_one_app_function_and_call(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run has its own app with one function, which has the declared resources and is called once."""
    used = launcher(
        app_name="mine", gpu=["H100:2", "A100-80GB:2"], cpu=2.0, memory=4096, region="us-east", cloud="aws",
        timeout="90m", retries=1, grace=10,
    )  # fmt: skip

    result = used.run("true", quiet=True)

    assert result.returncode == 0
    [app], [function], [call] = server.apps, server.functions, server.function_calls
    assert (app.description, app.tags) == ("mine", {"skyrl_run": result.run_id})
    assert call.function is function
    assert function.gpus == [("H100", 2), ("A100-80GB", 2)]
    definition = function.definition
    assert definition.module_name == "skyrl_modal.container.modal_entrypoint"
    assert definition.function_name == "run_job"
    assert definition.definition_type == definition.DEFINITION_TYPE_FILE  # by name, without pickle
    assert not definition.function_serialized
    assert definition.timeout_secs == 2 * (5400 + 10) + 300
    # The supervisor makes the further attempts. These starts replace containers with broken GPUs.
    assert definition.retry_policy.retries == MAX_REPLACEMENTS
    assert (definition.resources.milli_cpu, definition.resources.memory_mb) == (2000, 4096)
    assert [mount.mount_path for mount in definition.volume_mounts] == ["/root/data"]
    assert next(request.deployment_name for request in server.requests("VolumeGetOrCreate")) == volume.name
    server.wait_until(lambda: bool(app.stopped_at))


def test_secret_values_are_sent_in_one_request_only(
    server: LoopbackModal, launcher: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of secrets are in SecretGetOrCreate, and in no other request, log entry or file on the volume."""
    own_value, modal_value = "hunter2-" + os.urandom(8).hex(), "stored-" + os.urandom(8).hex()
    monkeypatch.setenv("API_KEY", own_value)
    server.secret("wandb", {"WANDB_API_KEY": modal_value})
    output = io.BytesIO()
    used = launcher(secrets=["API_KEY", SecretSpec("wandb", keys=["WANDB_API_KEY"])])

    result = used.run('printf "%s %s %s\n" "${#API_KEY}" "$API_KEY" "$WANDB_API_KEY"', output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == f"{len(own_value)} ******** ********\n".encode()
    values = [own_value.encode(), modal_value.encode()]
    credentials = [server.plane.token[0].encode(), server.plane.token[1].encode()]
    requests = {
        call.name
        for call in server.calls()
        if any(text in call.request.SerializeToString() for text in values + credentials)
    }
    assert requests == {"SecretGetOrCreate"}
    assert not any(own_value in entry.data or modal_value in entry.data for entry in server.log())
    files = [path.read_bytes() for path in server.volume(used.volumes[0].name).rglob("*") if path.is_file()]
    assert files
    assert not any(value in content for content in files for value in values)


def test_only_changed_files_are_uploaded(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """An unchanged checkout uploads no file, and an edit exactly one."""
    (checkout / "big.bin").write_bytes(os.urandom(5_000_000))  # large enough to be uploaded as a blob
    used = launcher()
    used.run("true", quiet=True)
    first = uploaded_digests(server)
    assert len(first) == len(set(first))
    assert len(first) > 5

    used.run("true", quiet=True)
    assert uploaded_digests(server) == first

    (checkout / "train.py").write_text("print('edited')\n")
    output = io.BytesIO()
    used.run("python3 train.py", output=output, quiet=True)
    assert output.getvalue() == b"edited\n"
    assert len(uploaded_digests(server)) == len(first) + 1


def test_default_image(server: LoopbackModal, launcher: Make) -> None:
    """Without an ImageSpec, the published image for the checkout's Ray is used, without further packages."""
    launcher().run("true", quiet=True)

    image = server.images[-1]
    assert image.commands[0] == "FROM novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0"  # the checkout pins ray 2.57.0
    assert "ENTRYPOINT []" in image.commands
    assert image.env["SKYRL_REPO_ROOT"] == "/root/SkyRL"
    assert not any("pip install" in line or "apt-get" in line for line in image.definition.dockerfile_commands)


def test_image_layers_have_a_fixed_order(server: LoopbackModal, launcher: Make) -> None:
    """The layers are base, apt, pip, commands, variables."""
    spec = ImageSpec(base="ubuntu:24.04", apt=["git"], pip=["wandb==0.19"], commands=["echo built"], env={"A": "1"})

    launcher(image=spec).run("test $A = 1", check=True, quiet=True)

    commands = server.images[-1].commands
    order = ["FROM ubuntu:24.04", "ENTRYPOINT []", "apt-get install -y git", "wandb==0.19", "RUN echo built", "ENV A"]
    places = [next(number for number, line in enumerate(commands) if part in line) for part in order]
    assert places == sorted(places)
    assert server.images[-1].env["A"] == "1"


def test_private_registry_uses_its_secret(server: LoopbackModal, launcher: Make) -> None:
    """The base image of a private registry is pulled with the named secret."""
    server.secret("registry", {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"})

    launcher(image=ImageSpec(base="registry.invalid/team/image:1", registry_secret="registry")).run("true", check=True)

    config = server.images[0].definition.image_registry_config
    assert config.secret_id.startswith("st-")
    assert config.registry_auth_type == api_pb2.REGISTRY_AUTH_TYPE_STATIC_CREDS


def test_edited_checkout_rebuilds_no_layer(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """The mounts are no layers of the image, so an edit builds nothing."""
    used = launcher(image=ImageSpec(apt=["git"], pip=["wandb"]))
    used.run("true", quiet=True)
    before = {image.id for image in server.images}
    builds = len(server.calls("ImageJoinStreaming"))

    (checkout / "train.py").write_text("print('edited')\n")
    used.run("true", quiet=True)

    assert {image.id for image in server.images} == before
    assert len(server.calls("ImageJoinStreaming")) == builds


def test_links_modes_and_names_are_preserved(
    server: LoopbackModal, launcher: Make, checkout: Path, tmp_path: Path
) -> None:
    """Links, executable files and names arrive as on the local backend; targets outside the mount are not uploaded."""
    folder, outside = tmp_path / "tree", tmp_path / "outside.txt"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("not in the mount")
    (folder / "sub" / "file").write_text("content\n")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "to-file").symlink_to("sub/file")
    (folder / "to-folder").symlink_to("sub")
    (folder / "broken").symlink_to("nowhere")
    (folder / "out").symlink_to(outside)
    (folder / "only-links").mkdir()
    (folder / "only-links" / "up").symlink_to("../sub/file")
    (folder / "ümläut 'quoted'").write_text("")
    command = (
        "cd /root/tree; find . -type l -printf '%p -> %l\\n' | sort; cat to-file to-folder/file only-links/up;"
        " ./run.sh; cat out; ls -d ü*; echo x > sub/new; ls to-folder"
    )
    outputs = {}
    for backend in ("modal", "local"):
        output = io.BytesIO()
        used = launcher(
            backend=backend, mounts=[MountSpec(local_path=folder, remote_path="/root/tree")], workdir="/root/tree"
        )
        used.run(command, output=output, quiet=True)
        outputs[backend] = output.getvalue().decode()

    assert outputs["modal"] == outputs["local"]
    assert "./to-folder -> sub\n" in outputs["modal"]
    assert "./broken -> nowhere\n" in outputs["modal"]
    assert outputs["modal"].count("content\n") == 3
    assert not any(b"not in the mount" in request.data for request in server.requests("MountPutFile"))


def test_undecodable_name_is_included(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """A file whose name is not UTF-8 is in the container under the same name."""
    (checkout / os.fsdecode(b"caf\xe9.txt")).write_text("")
    output = io.BytesIO()

    result = launcher().run("ls | grep -a ^caf | od -An -c", output=output, quiet=True)

    assert result.returncode == 0
    assert b"351" in output.getvalue()


@pytest.mark.parametrize(
    ("gpu", "listed", "expected"), [("A100:4", 5, "4"), (["H100:8", "A100-80GB:2"], 2, "2"), (None, 3, "0")]
)
def test_num_gpus_of_different_requests_is_counted(
    make_server: Callable[..., LoopbackModal], launcher: Make, tmp_path: Path, gpu: object, listed: int, expected: str
) -> None:
    """NUM_GPUS is the requested number, or what the container has if the requests differ in it."""
    tools, output = tmp_path / "tools", io.BytesIO()
    tools.mkdir()
    # Takes the place of the NVIDIA driver's program, and answers `--query-gpu=index --format=csv,noheader`.
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\nseq 0 {listed - 1}\n")
    (tools / "nvidia-smi").chmod(0o755)
    used = launcher(gpu=gpu)
    make_server(container_path=[tools], visible=[tools])

    used.run('echo "$NUM_GPUS"', output=output, quiet=True)

    assert output.getvalue().decode().strip() == expected


def test_steps_are_reported(launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """The messages of a run are, in this order: its id, the upload with its size, the call, the container, the end."""
    result = launcher().run("true")

    lines = capfd.readouterr().err.splitlines()
    assert result.run_id in lines[0]
    expected = [
        "building missing layers of the image, and uploading missing files of 5 files (",
        "submitted to Modal after ",
        "Python 3.",
        "succeeded, exit code 0",
    ]
    numbers = [next(number for number, line in enumerate(lines) if text in line) for text in expected]
    assert numbers == sorted(numbers)
    assert "https://modal.com/id/ap-" in lines[numbers[1]]
    assert numbers[-1] == len(lines) - 1
