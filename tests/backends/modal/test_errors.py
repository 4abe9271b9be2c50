"""What goes wrong before a run begins: a clear error of ours with Modal's words, before any work if it can be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import BackendUnavailable, ImageSpec, Launcher, SecretSpec, SpecError, VolumeSpec
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]

RUN = """
import sys
from skyrl_modal import Launcher
Launcher(checkout=sys.argv[1], gpu=None).run("true")
"""


def nothing_was_made(server: LoopbackModal) -> bool:
    return not server.apps and not server.images and not server.calls("MountPutFile")


def test_without_a_token_it_says_what_to_do_before_any_work(tmp_path: Path, checkout: Path) -> None:
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
    assert list(home.rglob("*")) == []  # not even a snapshot


def test_a_rejected_token(server: LoopbackModal, launcher: Make) -> None:
    server.faults.revoke_token()

    with pytest.raises(BackendUnavailable, match=r"token was refused .*Token validation failed.*modal setup"):
        launcher().run("true", quiet=True)

    assert nothing_was_made(server)


@pytest.mark.slow
def test_no_network(checkout: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nothing listens here
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
    assert "still looking whether Modal answers" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "BackendUnavailable" in last
    assert f"http://127.0.0.1:{port} gave no answer within 20 s" in last


@pytest.mark.filterwarnings("ignore:.*is not among the types known here")
def test_a_gpu_that_modal_refuses(server: LoopbackModal, launcher: Make) -> None:
    with pytest.raises(SpecError, match=r"gpu=\['X9000:2'\]: Modal refuses it: Invalid GPU type: 'X9000'"):
        launcher(gpu="X9000:2").run("true", quiet=True)

    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))


def test_a_missing_named_secret(server: LoopbackModal, launcher: Make) -> None:
    with pytest.raises(SpecError, match=r"secrets='absent': Modal has none such .*absent.*modal secret create"):
        launcher(secrets=[SecretSpec("absent")]).run("true", quiet=True)

    assert nothing_was_made(server)


def test_a_secret_that_lacks_a_key(server: LoopbackModal, launcher: Make) -> None:
    server.secret("wandb", {"OTHER": "x"})

    with pytest.raises(SpecError, match=r"secrets='wandb': .*missing key.*WANDB_API_KEY"):
        launcher(secrets=[SecretSpec("wandb", keys=["WANDB_API_KEY"])]).run("true", quiet=True)

    assert nothing_was_made(server)


def test_a_missing_registry_secret(server: LoopbackModal, launcher: Make) -> None:
    with pytest.raises(SpecError, match=r"registry_secret='none': .*REGISTRY_USERNAME"):
        launcher(image=ImageSpec(base="a/b", registry_secret="none")).run("true", quiet=True)

    assert nothing_was_made(server)


def test_a_missing_volume(server: LoopbackModal, launcher: Make) -> None:
    volumes = [VolumeSpec(name="absent", create_if_missing=False)]

    with pytest.raises(SpecError, match=r"volumes='absent': Modal has none such .*'main'.*create_if_missing"):
        launcher(volumes=volumes).run("true", quiet=True)

    assert nothing_was_made(server)


def test_a_volume_of_another_environment_is_told_with_the_one_that_was_looked_in(
    server: LoopbackModal, launcher: Make
) -> None:
    server.environment("other")
    server.volume("theirs", "other", create=True)

    with pytest.raises(SpecError, match=r"volumes='theirs': .*environment 'main'"):
        launcher(volumes=[VolumeSpec(name="theirs", create_if_missing=False)]).run("true", quiet=True)


def test_an_image_that_fails_to_build_brings_the_end_of_its_log(server: LoopbackModal, launcher: Make) -> None:
    log = "".join(f"step {number}\n" for number in range(100)) + "gcc: fatal error\nmake: *** [it] Error 1\n"
    server.faults.fail_build("make it", log=log)

    with pytest.raises(SpecError) as caught:
        launcher(image=ImageSpec(base="ubuntu:24.04", commands=["make it"])).run("true", quiet=True)

    text = str(caught.value)
    assert "image='ubuntu:24.04': it could not be built: Image build for im-" in text
    assert text.endswith("  | gcc: fatal error\n  | make: *** [it] Error 1")
    assert "  | step 99\n" in text
    assert "step 10\n" not in text
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))


def test_a_failed_build_of_a_submitted_run_is_told_by_submit(server: LoopbackModal, launcher: Make) -> None:
    server.faults.fail_build("make it", log="no rule\n")

    with pytest.raises(SpecError, match=r"could not be built(.|\n)*no rule"):
        launcher(image=ImageSpec(commands=["make it"])).submit("true")


def test_more_than_a_day_is_refused_before_any_work(server: LoopbackModal, launcher: Make) -> None:
    with pytest.raises(SpecError, match=r"timeout=90000.0: Modal ends a function after 24 h"):
        launcher(timeout="25h").run("true", quiet=True)

    assert server.names() == []


def test_a_day_is_possible_and_tells_when_it_is_stopped(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    result = launcher(timeout="24h").run("true")

    assert result.returncode == 0
    assert server.functions[0].definition.timeout_secs == 86400
    assert "whatever still runs after 86094 s is stopped so that it can save" in capfd.readouterr().err
