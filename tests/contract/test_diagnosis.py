"""Failures that are produced for real, and their diagnoses on every backend.

Programs of libraries that are not installed for tests raise the text that the library or SkyRL raises.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from skyrl_modal import RaySpec, Run, RunResult
from skyrl_modal.views.diagnosis import diagnosis_to_json
from tests.conftest import MakeLauncher
from tests.contract.conftest import LOCAL_FIRST

_PYTHON = shlex.quote(sys.executable)
#: The check of SkyRL's configuration (skyrl/train/utils/utils.py).
_MISSING_KEY = """
import os
assert os.environ.get("WANDB_API_KEY"), "`WANDB_API_KEY` is required for `wandb` logger"
"""
_PORT_IN_USE = """
import socket
first = socket.create_server(("127.0.0.1", 0))
socket.create_server(first.getsockname())
"""
_FULL_DISK = """
with open("/dev/full", "wb", buffering=0) as file:
    file.write(b"checkpoint")
"""
_MISSING_DATA = """
open("/root/data/gsm8k/train.parquet", "rb")
"""
#: How the trainer finds its checkpoint (skyrl/train/trainer.py).
_DAMAGED_POINTER = """
def load_checkpoints(path):
    with open(path) as f:
        ckpt_iteration = int(f.read().strip())
open("latest_ckpt_global_step.txt", "w").close()
load_checkpoints("latest_ckpt_global_step.txt")
"""
#: A hub on loopback that refuses each request, and the error that huggingface_hub makes of its answer.
_GATED_MODEL = """
import http.server, threading, urllib.error, urllib.request
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
class GatedRepoError(Exception):
    __module__ = "huggingface_hub.errors"
url = f"http://127.0.0.1:{server.server_port}/org/model/resolve/main/config.json"
try:
    urllib.request.urlopen(url)
except urllib.error.HTTPError as error:
    assert error.headers["X-Error-Code"] == "GatedRepo"
    raise GatedRepoError(
        f"{error.code} Client Error. (Request ID: Root=1-2;3)\\n\\nCannot access gated repo for url {url}.\\n"
        "Access to model org/model is restricted."
    ) from error
"""
_KILLED = """
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
_OUTDATED_LOCK = """
mkdir -p "$SKYRL_DATA/project" && cd "$SKYRL_DATA/project"
export UV_OFFLINE=1 UV_PYTHON={python}
printf '[project]\\nname = "demo"\\nversion = "1"\\nrequires-python = ">=3.10"\\n' > pyproject.toml
{uv} lock
printf '[project]\\nname = "demo"\\nversion = "1"\\nrequires-python = ">=3.11"\\n' > pyproject.toml
{uv} run --locked true
"""
#: The driver of another version: Ray compares its own version with the cluster's.
_OTHER_RAY = """
import ray
ray.__version__ = "2.0.0"
ray.init(address="auto")
"""
#: How SkyRL waits for its GPUs (skyrl/train/utils/utils.py), with a shorter time.
_TOO_MANY_GPUS = """
import ray
from ray.util.placement_group import placement_group
ray.init(address="auto")
@ray.remote(num_cpus=0)
def skyrl_entrypoint():
    group = placement_group([{"GPU": 1, "CPU": 1}] * 8)
    try:
        ray.get(group.ready(), timeout=1)
    except Exception as e:
        raise RuntimeError(
            "Failed to create placement group with 8 bundles (requiring 8 GPUs, 8 CPUs total) in 1 seconds. "
            f"This might indicate insufficient GPU resources.\\nError: {e}"
        )
ray.get(skyrl_entrypoint.remote())
"""


def _python(program: str) -> str:
    return f"{_PYTHON} -c {shlex.quote(program)}"


def _assert_explained(result: RunResult, code: str) -> None:
    """Assert that a run failed for this reason, and that it is explained in another process too."""
    diagnosis = result.diagnosis
    assert result.returncode != 0
    assert diagnosis is not None
    assert diagnosis.code == code
    assert diagnosis.remedy
    assert diagnosis.evidence or code == "killed"
    assert Run.attach(result.run_id).result().diagnosis == diagnosis
    assert json.loads(diagnosis_to_json(diagnosis))["code"] == code


@pytest.mark.parametrize(
    ("program", "code"),
    [
        pytest.param(_MISSING_KEY, "wandb-key-missing", id="key"),
        pytest.param(_PORT_IN_USE, "port-in-use", id="port"),
        pytest.param(_FULL_DISK, "disk-full", id="disk"),
        pytest.param(_MISSING_DATA, "data-file-missing", id="data"),
        pytest.param(_DAMAGED_POINTER, "checkpoint-pointer-damaged", id="checkpoint"),
        pytest.param(_GATED_MODEL, "model-gated", id="model"),
        pytest.param(_KILLED, "killed", id="killed"),
    ],
)
@LOCAL_FIRST
def test_failing_program(launcher: MakeLauncher, program: str, code: str) -> None:
    """A failure of a program is explained."""
    command = f"cd /tmp && {_python(program)}"
    _assert_explained(launcher().run(command, quiet=True), code)


@LOCAL_FIRST
def test_cause_in_kept_log(launcher: MakeLauncher) -> None:
    """The cause is found in a log of SkyRL, if the output only has its consequence."""
    command = (
        "mkdir -p /tmp/skyrl-logs; "
        "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB' > /tmp/skyrl-logs/infra-1.log; "
        "echo 'RuntimeError: Engine core initialization failed. See root cause above.'; exit 1"
    )

    result = launcher().run(command, quiet=True)

    _assert_explained(result, "gpu-out-of-memory")
    assert result.diagnosis is not None
    assert [line.file for line in result.diagnosis.evidence] == ["skyrl-logs/infra-1.log", "output.log"]


@LOCAL_FIRST
def test_success_has_no_diagnosis(launcher: MakeLauncher) -> None:
    """A run that succeeded has no diagnosis, whatever it printed."""
    assert launcher().run("echo 'RuntimeError: CUDA out of memory'", quiet=True).diagnosis is None


@LOCAL_FIRST
def test_outdated_lock(launcher: MakeLauncher) -> None:
    """uv refuses a lock file that is not up to date."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed")
    command = _OUTDATED_LOCK.format(uv=shlex.quote(str(uv)), python=_PYTHON)
    _assert_explained(launcher().run(command, quiet=True), "uv-lock-outdated")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("program", "code"),
    [
        pytest.param(_OTHER_RAY, "ray-version-mismatch", id="version"),
        pytest.param(_TOO_MANY_GPUS, "placement-group-too-large", id="placement"),
    ],
)
def test_failing_driver_of_ray(launcher: MakeLauncher, program: str, code: str) -> None:
    """A failure of a driver of the run's Ray is explained."""
    result = launcher(ray=RaySpec(num_cpus=1)).run(_python(program), quiet=True)
    _assert_explained(result, code)
