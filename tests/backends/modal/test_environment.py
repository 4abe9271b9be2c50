"""The environment of a command on Modal: that of the image, without Modal's own runtime."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from skyrl_modal import ImageSpec, Launcher, SecretSpec
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]
PROGRAMS = "/home/ray/.local/bin"


def output_of(launcher: Launcher, command: str) -> list[str]:
    """Return the lines that a command prints."""
    output = io.BytesIO()
    launcher.run(command, output=output, quiet=True, check=True)
    return output.getvalue().decode().splitlines()


@pytest.mark.parametrize("runtime_paths", ["PYTHONPATH", "sitecustomize"])
@pytest.mark.parametrize("home", ["/root", "/home/ray"])
def test_runtime_is_not_inherited(make_server: Any, checkout: Any, volume: Any, home: str, runtime_paths: str) -> None:
    """The command cannot import the packages of Modal's runtime. HOME is the image's; PATH has its programs."""
    make_server(mode=Mode(home=home, runtime_paths=runtime_paths))
    launcher = Launcher(backend="modal", checkout=checkout, volumes=[volume], ray=None, gpu=None)
    python = "import sys; print([path for path in sys.path if path.startswith(('/pkg', '/__modal'))])"
    command = (
        f'echo "${{PYTHONPATH-unset}} $HOME"; echo "$PATH"; python3 -c "{python}"; '
        "python3 -c 'import modal_runtime_dependency' 2>/dev/null || echo not found"
    )

    variables, path, folders, found = output_of(launcher, command)

    assert variables == f"/root/skyrl_modal/formats/hook {home}"
    assert path.split(":")[-1] == PROGRAMS
    assert (folders, found) == ("[]", "not found")


def test_variables_of_the_image(server: LoopbackModal, launcher: Make) -> None:
    """Variables of the image are kept; those of `env` replace them. A declared PATH has the image's programs too."""
    image = ImageSpec(env={"PYTHONPATH": "/opt/mine", "MINE": "image", "OTHER": "image"})

    lines = output_of(
        launcher(image=image, env={"OTHER": "env", "PATH": "/usr/bin:/bin"}),
        'echo "$PYTHONPATH $MINE $OTHER $MODAL_REGION"; echo "$PATH"',
    )

    assert lines[0] == "/root/skyrl_modal/formats/hook:/opt/mine image env us-east-1"
    assert lines[1].endswith(f":/usr/bin:/bin:{PROGRAMS}")


def test_replaced_variable_of_a_stored_secret(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stored secret may contain a variable that the run sets, which no plan can know. It is not lost silently."""
    server.secret("stored", {"NUM_NODES": "7", "MINE": "of the secret"})
    output = io.BytesIO()

    launcher(secrets=[SecretSpec("stored")]).run('echo "$NUM_NODES $MINE"', output=output, check=True)

    assert output.getvalue() == b"1 of the secret\n"
    assert "defines NUM_NODES; the command has the run's own values" in capfd.readouterr().err
