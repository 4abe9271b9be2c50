"""A run's Ray accepts only clients that have the run's token: neither other users nor other machines."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from skyrl_modal import Launcher, RaySpec, Run, VolumeSpec
from skyrl_modal.backends.local.network import ClusterNetwork, unavailable_reason
from skyrl_modal.backends.local.volume_folder import volume_folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

#: A user that owns no file of this machine: the kernel's overflow user id (user_namespaces(7)).
OTHER_USER = 65534
#: Prints the user that a task of the cluster runs as.
DRIVER = """
import os, sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
task = ray.remote(num_cpus=0)(lambda: os.getuid())
print("task ran as user", ray.get(task.remote(), timeout=60))
"""
#: Prints the number of nodes. A driver asks Ray's head the same before it does anything else. The driver itself would
#: need a Ray node at its own address.
HEAD_CLIENT = """
import sys
from ray._raylet import GcsClient
print("nodes", len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""
COMMAND = 'printf "%s %s" "$RAY_ADDRESS" "$RAY_AUTH_TOKEN" > "$SKYRL_DATA/ray" && echo up && exec sleep 600'


@frozen
class ActiveRay:
    """The Ray of an active run.

    Attributes:
        address: HOST:PORT of its head.
        token: The run's token.
    """

    address: str
    token: str


@pytest.fixture
def start_ray(checkout: Path, tmp_path: Path) -> Iterator[Callable[[], ActiveRay]]:
    """Return a function that starts a run with Ray, which is cancelled after the test."""
    runs: list[Run] = []

    def start() -> ActiveRay:
        name = f"authentication-{os.getpid()}-{tmp_path.name}"[:60]
        launcher = Launcher(
            backend="local", checkout=checkout, volumes=[VolumeSpec(name=name)], ray=RaySpec(num_cpus=1)
        )
        runs.append(launcher.submit(COMMAND))
        assert next(iter(runs[-1].logs(follow=True))) == "up"
        address, token = (volume_folder(name) / "ray").read_text().split(" ")
        return ActiveRay(address, token)

    yield start
    for run in runs:
        run.cancel()
        run.wait(60)


def run_client(script: str, address: str, token: str | None, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run a client of Ray, with a token or without one, through a wrapper program."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["HOME"] = "/nonexistent"  # no token of the user
    env["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # a driver that is refused would try again for 20 s
    if token is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [*wrapper, sys.executable, "-c", script, address]
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=120, check=False)


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    """Check that a client was refused because of its token, and not for another reason."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert "InvalidAuthToken" in done.stderr


@pytest.fixture
def as_other_user() -> list[str]:
    """Return a wrapper program that runs a command as another user.

    The user may read all files, since the Python of these tests may be in a folder of root. It may also connect to the
    sockets of Ray, so that only the token decides.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("requires root and setpriv")
    capability = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", *capability]


def test_another_user_needs_the_token(
    start_ray: Callable[[], ActiveRay], as_other_user: list[str], no_namespaces: None
) -> None:
    """A driver of another user is refused without a token and with a wrong one. With the token it is accepted."""
    # Without namespaces: in a sandbox another user would not find the files of the run's Ray.
    ray = start_ray()

    assert_refused(run_client(DRIVER, ray.address, None, *as_other_user))
    assert_refused(run_client(DRIVER, ray.address, secrets.token_hex(32), *as_other_user))

    accepted = run_client(DRIVER, ray.address, ray.token, *as_other_user)
    assert accepted.stdout == f"task ran as user {os.getuid()}\n", accepted.stderr


@contextlib.contextmanager
def other_machine(network: ClusterNetwork) -> Iterator[list[str]]:
    """Return a wrapper program that enters a network namespace with an address of its own."""
    command = ["unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        network.connect(1, process.pid)
        try:
            yield ["nsenter", f"--net=/proc/{process.pid}/ns/net"]
        finally:
            process.kill()


@pytest.mark.skipif(unavailable_reason() is not None, reason="private networks are not available")
def test_another_machine_needs_the_token(start_ray: Callable[[], ActiveRay]) -> None:
    """A client at another address is refused without a token and with a wrong one. With the token it is accepted."""
    ray = start_ray()
    network = ClusterNetwork.create(2)
    try:
        address = f"{network.addresses[0]}:{ray.address.rpartition(':')[2]}"
        with other_machine(network) as wrapper:
            assert_refused(run_client(HEAD_CLIENT, address, None, *wrapper))
            assert_refused(run_client(HEAD_CLIENT, address, secrets.token_hex(32), *wrapper))

            accepted = run_client(HEAD_CLIENT, address, ray.token, *wrapper)
            assert accepted.stdout == "nodes 1\n", accepted.stderr
    finally:
        network.close()


def test_a_token_of_the_user_does_not_matter(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with Ray works after `ray.init()` has stored a token in the user's home folder, which is not used."""
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    launcher = Launcher(backend="local", checkout=checkout, volumes=[], ray=RaySpec(num_cpus=1))

    result = launcher.run("python -c 'import ray; ray.init(); print(ray.nodes())'", quiet=True)

    assert result.succeeded, result.detail
