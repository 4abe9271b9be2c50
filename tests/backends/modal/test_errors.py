"""Tests of errors before a run starts: each is this package's, and is raised before any work where that is possible."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from skyrl_modal import BackendUnavailable, ImageSpec, Launcher, RaySpec, SecretSpec, SpecError, VolumeSpec
from skyrl_modal.backends.modal.errors import translated_client_errors
from tests.backends.modal.conftest import requests_for_run
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]

RUN = """
import sys
from skyrl_modal import Launcher
Launcher(checkout=sys.argv[1], gpu=None).run("true")
"""


def nothing_was_created(server: LoopbackModal) -> bool:
    """Return whether the server has no app and no image, and received no file."""
    return not server.apps and not server.images and not server.calls("MountPutFile")


def spec_error(launcher: Launcher) -> SpecError:
    """Run a command that must not start, and return the error."""
    with pytest.raises(SpecError) as caught:
        launcher.run("true", quiet=True)
    return caught.value


def test_missing_token_is_reported_before_any_work(tmp_path: Path, checkout: Path) -> None:
    """Without a token, the error contains both remedies; only the search for keys is stored, and no snapshot."""
    home = tmp_path / "home"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "XDG_"))}

    done = subprocess.run(
        [sys.executable, "-c", RUN, str(checkout)],
        env={**env, "HOME": str(home)},
        check=False,
        capture_output=True,
        text=True,
    )

    last = done.stderr.splitlines()[-1]
    assert "BackendUnavailable" in last
    assert "modal setup" in last
    assert 'backend="local"' in last
    assert [path for path in home.rglob("*") if path.is_file() and path.parent.name != "results"] == []


def test_refused_token(server: LoopbackModal, launcher: Make) -> None:
    """A token that Modal refuses is reported with Modal's reason and the remedy."""
    server.faults.revoke_token()

    with pytest.raises(BackendUnavailable, match=r"refused the token .*Token validation failed.*modal setup"):
        launcher().run("true", quiet=True)

    assert nothing_was_created(server)


@pytest.mark.slow
def test_no_network(checkout: Path) -> None:
    """Without a network, progress is reported, and the start fails after the timeout."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        env = {"MODAL_SERVER_URL": f"http://127.0.0.1:{port}", "MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-x"}
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(checkout)],
            env={**os.environ, **env},
            check=False,
            capture_output=True,
            text=True,
        )

    assert time.monotonic() - begin < 40
    assert "skyrl-modal | checking that Modal is reachable (" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "BackendUnavailable" in last
    assert f"http://127.0.0.1:{port} did not respond within 20 s" in last


@pytest.mark.filterwarnings("ignore:.*is not among the types known here")
@pytest.mark.filterwarnings("ignore:.*GPU")
def test_app_that_modal_refuses(server: LoopbackModal, launcher: Make) -> None:
    """If Modal refuses the app, the error contains Modal's reason, and the app is stopped."""
    error = spec_error(launcher(gpu="X9000:2"))

    assert error.field == "app_name"
    assert "Invalid GPU type: 'X9000'" in error.remedy
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))


def test_missing_named_secret(server: LoopbackModal, launcher: Make) -> None:
    """A secret that Modal does not have is reported with the command that creates it."""
    error = spec_error(launcher(secrets=[SecretSpec("absent")]))

    assert (error.field, error.value) == ("secrets", "absent")
    assert "modal secret create absent" in error.remedy
    assert nothing_was_created(server)


def test_optional_named_secret(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """An optional secret that Modal does not have is left out with a message, and one that it has is used."""
    server.secret("stored", {"STORED_KEY": "stored-value"})
    secrets = [SecretSpec("stored", keys=["STORED_KEY"], optional=True), SecretSpec("absent", optional=True)]

    launcher(secrets=secrets).run('test "${#STORED_KEY}" = 12 && echo "<$STORED_KEY>"', output=(output := io.BytesIO()))

    assert output.getvalue() == b"<********>\n"
    assert "optional secret absent is left out" in capfd.readouterr().err


def test_secret_without_a_required_key(server: LoopbackModal, launcher: Make) -> None:
    """A secret that lacks a required variable is reported with the variable's name."""
    server.secret("wandb", {"OTHER": "x"})

    error = spec_error(launcher(secrets=[SecretSpec("wandb", keys=["WANDB_API_KEY"])]))

    assert (error.field, error.value) == ("secrets", "wandb")
    assert "WANDB_API_KEY" in error.remedy
    assert nothing_was_created(server)


def test_missing_registry_secret(server: LoopbackModal, launcher: Make) -> None:
    """A missing secret of a registry is reported with the variables that it needs."""
    error = spec_error(launcher(image=ImageSpec(base="a/b", registry_secret="none")))

    assert (error.field, error.value) == ("registry_secret", "none")
    assert "REGISTRY_USERNAME" in error.remedy
    assert nothing_was_created(server)


def test_missing_volume(server: LoopbackModal, launcher: Make) -> None:
    """A volume that is missing and may not be created is reported with the remedies and the environment."""
    error = spec_error(launcher(volumes=[VolumeSpec(name="absent", create_if_missing=False)]))

    assert (error.field, error.value) == ("volumes", "absent")
    for text in ("modal volume create absent", "create_if_missing", "'main'"):
        assert text in error.remedy
    assert nothing_was_created(server)


def test_volume_of_another_environment(server: LoopbackModal, launcher: Make) -> None:
    """A volume of another environment is missing; the error names the environment that was searched."""
    server.environment("other")
    server.volume("theirs", "other", create=True)

    error = spec_error(launcher(volumes=[VolumeSpec(name="theirs", create_if_missing=False)]))

    assert (error.field, error.value) == ("volumes", "theirs")
    assert "environment 'main'" in error.remedy


def test_failed_build_includes_the_end_of_its_log(server: LoopbackModal, launcher: Make) -> None:
    """The error of a failed build ends with the last lines of the build log."""
    log = "".join(f"step {number}\n" for number in range(100)) + "gcc: fatal error\nmake: *** [it] Error 1\n"
    server.faults.fail_build("make it", log=log)

    error = spec_error(launcher(image=ImageSpec(base="ubuntu:24.04", commands=["make it"])))

    assert (error.field, error.value) == ("image", "ubuntu:24.04")
    assert "Image build for im-" in error.remedy
    assert error.remedy.endswith("  | gcc: fatal error\n  | make: *** [it] Error 1")
    assert "  | step 99\n" in error.remedy
    assert "step 10\n" not in error.remedy
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))


def test_failed_build_is_raised_by_submit(server: LoopbackModal, launcher: Make) -> None:
    """``submit`` waits for the build, and raises its error."""
    server.faults.fail_build("make it", log="no rule\n")

    with pytest.raises(SpecError) as caught:
        launcher(image=ImageSpec(commands=["make it"])).submit("true")

    assert caught.value.field == "image"
    assert "no rule" in caught.value.remedy


def test_timeout_of_more_than_a_day_is_refused(server: LoopbackModal, launcher: Make) -> None:
    """A timeout above Modal's limit is refused before any request for the run."""
    error = spec_error(launcher(timeout="25h"))

    assert (error.field, error.value) == ("timeout", 90000.0)
    assert requests_for_run(server) == []


def test_dashboard_without_token_is_refused(server: LoopbackModal, launcher: Make) -> None:
    """A dashboard that the image's Ray cannot protect is refused before any request for the run."""
    error = spec_error(
        launcher(ray=RaySpec(dashboard=True), image=ImageSpec(base="novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"))
    )

    assert (error.field, error.value) == ("dashboard", True)
    assert requests_for_run(server) == []


def test_timeout_of_a_day_leaves_time_to_save(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """A timeout at Modal's limit is accepted, with a warning that the run is stopped before it."""
    result = launcher(timeout="24h").run("true")

    assert result.returncode == 0
    assert server.functions[0].definition.timeout_secs == 86400
    assert "has not ended after 86094 s" in capfd.readouterr().err


def test_outage_is_no_raw_error(server: LoopbackModal, launcher: Make) -> None:
    """Errors of Modal's client are converted also in the verbs for volumes."""
    used = launcher()
    used.run("true", quiet=True)
    server.faults.revoke_token()

    with pytest.raises(BackendUnavailable, match="modal setup"):
        used.ls("/root/data")


def test_error_of_python_in_the_client_is_converted(server: LoopbackModal) -> None:
    """An error of one of Python's classes, raised in Modal's client, arrives as BackendUnavailable with its text."""
    # The declarations refuse such names, so the client is called directly.
    with (
        pytest.raises(BackendUnavailable, match=r"Modal's client failed: UnicodeEncodeError: .*surrogates not allowed"),
        translated_client_errors(),
    ):
        modal.Secret.from_name("stored", required_keys=["\udc80"]).hydrate()


def test_path_that_is_not_unicode_is_refused(server: LoopbackModal, launcher: Make, tmp_path: Path) -> None:
    """A path on a volume that Modal's protocol cannot express is refused with the path."""
    (tmp_path / "file").touch()
    used = launcher()

    for verb in (lambda path: used.push(tmp_path / "file", path), used.ls, lambda path: used.pull(path, tmp_path)):
        with pytest.raises(SpecError) as caught:
            verb("/root/data/\udc80")
        assert (caught.value.field, caught.value.value) == ("path", "\udc80")
