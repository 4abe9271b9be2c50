"""What a run asks of Modal, as the control plane recorded it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import ImageSpec, Launcher, MountSpec, SecretSpec, VolumeSpec
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]


def uploaded(server: LoopbackModal) -> list[str]:
    """The contents that were sent, by digest: a check whether it is there has no data."""
    return [
        request.sha256_hex
        for request in server.requests("MountPutFile")
        if request.WhichOneof("data_oneof") is not None
    ]


def test_a_run_creates_one_app_one_function_and_one_call(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec
) -> None:
    made = launcher(
        app_name="mine", gpu=["H100:2", "A100-80GB:2"], cpu=2.0, memory=4096, region="us-east", cloud="aws",
        timeout="90m", retries=1, grace=10,
    )  # fmt: skip

    result = made.run("true", quiet=True)

    assert result.returncode == 0
    [app], [function], [call] = server.apps, server.functions, server.function_calls
    assert (app.description, app.tags) == ("mine", {"skyrl_run": result.run_id})
    assert call.function is function
    assert function.gpus == [("H100", 2), ("A100-80GB", 2)]
    definition = function.definition
    assert definition.module_name == "skyrl_modal.container.modal_entrypoint"
    assert definition.function_name == "run_job"
    assert definition.definition_type == definition.DEFINITION_TYPE_FILE  # named, not pickled
    assert not definition.function_serialized
    assert definition.timeout_secs == 2 * (5400 + 10) + 300
    assert definition.retry_policy.retries == 0  # the supervisor counts them
    assert (definition.resources.milli_cpu, definition.resources.memory_mb) == (2000, 4096)
    assert [mount.mount_path for mount in definition.volume_mounts] == ["/root/data"]
    assert next(request.deployment_name for request in server.requests("VolumeGetOrCreate")) == volume.name
    server.wait_until(lambda: bool(app.stopped_at))


def test_secret_values_are_in_secret_get_or_create_and_nowhere_else(
    server: LoopbackModal, launcher: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value, kept = "hunter2-" + os.urandom(8).hex(), "kept-" + os.urandom(8).hex()
    monkeypatch.setenv("API_KEY", value)
    server.secret("wandb", {"WANDB_API_KEY": kept})
    output = io.BytesIO()
    made = launcher(secrets=["API_KEY", SecretSpec("wandb", keys=["WANDB_API_KEY"])])

    result = made.run('printf "%s %s %s\n" "${#API_KEY}" "$API_KEY" "$WANDB_API_KEY"', output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == f"{len(value)} ******** ********\n".encode()
    tokens = [server.plane.token[0].encode(), server.plane.token[1].encode()]
    found = {
        call.name
        for call in server.calls()
        if any(text in call.request.SerializeToString() for text in (value.encode(), kept.encode(), *tokens))
    }
    assert found == {"SecretGetOrCreate"}
    assert not any(value in entry.data or kept in entry.data for entry in server.log())
    folder = server.volume(made.volumes[0].name)
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not any(value.encode() in content or kept.encode() in content for content in files)


def test_an_unchanged_checkout_sends_no_file_and_an_edit_exactly_one(
    server: LoopbackModal, launcher: Make, checkout: Path
) -> None:
    (checkout / "big.bin").write_bytes(os.urandom(5_000_000))  # one that goes as a blob
    made = launcher()
    made.run("true", quiet=True)
    first = uploaded(server)
    assert len(first) == len(set(first))
    assert len(first) > 5

    made.run("true", quiet=True)
    assert uploaded(server) == first

    (checkout / "train.py").write_text("print('edited')\n")
    output = io.BytesIO()
    made.run("python3 train.py", output=output, quiet=True)
    assert output.getvalue() == b"edited\n"
    assert len(uploaded(server)) == len(first) + 1


def test_the_image_of_a_plain_spec(server: LoopbackModal, launcher: Make) -> None:
    launcher().run("true", quiet=True)

    image = server.images[-1]
    assert image.commands[0] == "FROM novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0"  # the checkout pins ray 2.57.0
    assert "ENTRYPOINT []" in image.commands
    assert image.env["SKYRL_REPO_ROOT"] == "/root/SkyRL"
    assert not any("pip install" in line or "apt-get" in line for line in image.definition.dockerfile_commands)


def test_the_layers_come_in_their_order(server: LoopbackModal, launcher: Make) -> None:
    spec = ImageSpec(base="ubuntu:24.04", apt=["git"], pip=["wandb==0.19"], commands=["echo built"], env={"A": "1"})

    launcher(image=spec).run("test $A = 1", check=True, quiet=True)

    commands = server.images[-1].commands
    order = ["FROM ubuntu:24.04", "ENTRYPOINT []", "apt-get install -y git", "wandb==0.19", "RUN echo built", "ENV "]
    places = [next(number for number, line in enumerate(commands) if part in line) for part in order]
    assert places == sorted(places)
    assert server.images[-1].env["A"] == "1"


def test_a_private_registry_is_asked_with_its_secret(server: LoopbackModal, launcher: Make) -> None:
    server.secret("registry", {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"})

    launcher(image=ImageSpec(base="registry.invalid/team/image:1", registry_secret="registry")).run("true", check=True)

    config = server.images[0].definition.image_registry_config
    assert config.secret_id.startswith("st-")
    assert config.registry_auth_type == config_type(config)


def config_type(config: object) -> int:
    from modal_proto import api_pb2

    return api_pb2.REGISTRY_AUTH_TYPE_STATIC_CREDS


def test_an_edit_of_the_checkout_leaves_the_layers_alone(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    made = launcher(image=ImageSpec(apt=["git"], pip=["wandb"]))
    made.run("true", quiet=True)
    before = {image.id for image in server.images}
    builds = len(server.calls("ImageJoinStreaming"))

    (checkout / "train.py").write_text("print('edited')\n")
    made.run("true", quiet=True)

    assert {image.id for image in server.images} == before
    assert len(server.calls("ImageJoinStreaming")) == builds


def test_links_bits_and_names_arrive_as_they_are(
    server: LoopbackModal, launcher: Make, checkout: Path, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "tree", tmp_path / "outside.txt"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("not in the mount, so it stays")  # only the link goes
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
    told = {}
    for backend in ("modal", "local"):
        output = io.BytesIO()
        made = launcher(
            backend=backend, mounts=[MountSpec(local_path=folder, remote_path="/root/tree")], workdir="/root/tree"
        )
        made.run(command, output=output, quiet=True)
        told[backend] = output.getvalue().decode()

    assert told["modal"] == told["local"]
    assert "./to-folder -> sub\n" in told["modal"]
    assert "./broken -> nowhere\n" in told["modal"]
    assert told["modal"].count("content\n") == 3
    assert not any(b"not in the mount" in request.data for request in server.requests("MountPutFile"))


def test_a_name_that_is_no_text_stays_behind_and_is_told(
    server: LoopbackModal, launcher: Make, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (checkout / os.fsdecode(b"caf\xe9.txt")).write_text("")

    result = launcher().run("ls")

    captured = capfd.readouterr()
    assert result.returncode == 0
    assert "caf" not in captured.out
    assert "its name is not UTF-8" in captured.err


@pytest.mark.parametrize(
    ("gpu", "listed", "expected"), [("A100:4", 1, "4"), (["H100:8", "A100-80GB:2"], 2, "2"), (None, 3, "0")]
)
def test_num_gpus_is_what_the_container_has_where_the_wishes_differ(
    make_server: Callable[..., LoopbackModal], launcher: Make, tmp_path: Path,
    gpu: object, listed: int, expected: str,
) -> None:  # fmt: skip
    tools, output = tmp_path / "tools", io.BytesIO()
    tools.mkdir()
    # Stands where the driver's own tool is on a machine with GPUs.
    (tools / "nvidia-smi").write_text(f'#!/bin/sh\nfor i in $(seq {listed}); do echo "GPU $i: X"; done\n')
    (tools / "nvidia-smi").chmod(0o755)
    made = launcher(gpu=gpu)
    make_server(container_path=[tools], visible=[tools])

    made.run('echo "$NUM_GPUS"', output=output, quiet=True)

    assert output.getvalue().decode().strip() == expected


def test_what_goes_is_told_with_files_and_megabytes(launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    result = launcher().run("true")

    lines = capfd.readouterr().err.splitlines()
    assert any("building what the image lacks, and uploading what Modal lacks of 5 files (0.0 MB)" in x for x in lines)
    assert any("handed over after" in line and "https://modal.com/id/ap-" in line for line in lines)
    assert any("the container is up: Python 3." in line for line in lines)
    assert lines[-1].startswith("skyrl-modal | succeeded, exit code 0")
    assert result.run_id in lines[0]
