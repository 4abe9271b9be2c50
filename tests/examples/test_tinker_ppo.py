"""Tests of examples/tinker_ppo.py on the loopback, with small programs in place of SkyRL's server and client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.loopback import LoopbackModal

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tinker_ppo.py"
SERVER = """
import http.server, os, sys, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"42")
    def log_message(self, *arguments): pass
port = urllib.parse.urlsplit(os.environ["TINKER_PPO_URL"]).port
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
CLIENT = """
import sys, urllib.request
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open(arguments["--data-dir"] + "/train.parquet").close()
print("answer", urllib.request.urlopen(arguments["--base-url"]).read().decode(), arguments.get("--max-train-steps"))
open("/root/ckpts/saved", "w").close()
"""
DATA = """
import os, sys
os.makedirs(sys.argv[2], exist_ok=True)
for name in ("train", "validation"):
    open(f"{sys.argv[2]}/{name}.parquet", "w").close()
print("data prepared")
"""
#: The example without GPU, since the loopback counts none, and without `uv run`, whose environment it does not build.
CALLER = """
import sys, attrs
sys.path.insert(0, sys.argv[1])
import tinker_ppo
tinker_ppo.PREPARE = tinker_ppo.PREPARE.replace("uv run --extra tinker ", "")
tinker_ppo.SERVER_AND_CLIENT = tinker_ppo.SERVER_AND_CLIENT.replace("uv run --extra tinker ", "")
env = {**tinker_ppo.train.env, "TINKER_PPO_URL": sys.argv[2]}
tinker_ppo.train = attrs.evolve(tinker_ppo.train, env=env, gpu=None)
sys.exit(tinker_ppo.main(sys.argv[3:]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackModal]:
    """Yield a control plane, and fail the test if a request was not handled."""
    with LoopbackModal(tmp_path, scaledown=1, client_timeout=5) as server:
        yield server
        assert server.unimplemented == []
        assert server.errors == []


RunExample = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_example(server: LoopbackModal, tmp_path: Path) -> RunExample:
    """Return a function that runs the example with arguments, on a checkout with small programs."""
    root = tmp_path / "SkyRL"
    ppo, gsm8k = root / "examples/tinker/ppo", root / "examples/train/gsm8k"
    for folder in (ppo, gsm8k, root / "skyrl-gym"):
        folder.mkdir(parents=True)
    (root / "skyrl-gym/pyproject.toml").write_text('[project]\nname = "skyrl-gym"\nversion = "0"\n')
    (root / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\n')
    (root / "uv.lock").write_text("version = 1\n")
    (ppo / "server.py").write_text(SERVER)
    (ppo / "run_tinker_server.sh").write_text("python examples/tinker/ppo/server.py\n")
    (ppo / "ppo_client.py").write_text(CLIENT)
    (gsm8k / "gsm8k_dataset.py").write_text(DATA)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CALLER, str(EXAMPLE.parent), url, *arguments],
            env={**os.environ, **server.env(), "SKYRL_REPO_ROOT": str(root)},
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
        )

    return run


def test_server_and_client_share_a_container(server: LoopbackModal, run_example: RunExample) -> None:
    """The data are prepared once, the client waits for the server, and both end with the client's exit code."""
    first = run_example("--max-train-steps", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "data prepared" in first.stdout
    assert "answer 42 2" in first.stdout

    second = run_example()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "the data set exists" in second.stdout
    server.wait_for_no_container()


def test_server_that_exits_is_reported(run_example: RunExample, tmp_path: Path) -> None:
    """A server that exits before it is ready ends the run, with its exit code in the output."""
    (tmp_path / "SkyRL/examples/tinker/ppo/server.py").write_text("raise SystemExit(9)\n")

    done = run_example()

    assert done.returncode == 1
    assert "the server exited with code 9" in done.stdout


@pytest.mark.slow
def test_client_failure_is_the_exit_code(run_example: RunExample, tmp_path: Path) -> None:
    """The exit code is the client's, and a server that still runs is ended."""
    (tmp_path / "SkyRL/examples/tinker/ppo/ppo_client.py").write_text("raise SystemExit(4)\n")

    assert run_example().returncode == 4


@pytest.mark.slow
def test_image_has_the_locked_dependencies(server: LoopbackModal, run_example: RunExample) -> None:
    """The image installs the extras from the lock file on a machine with a GPU, once for both steps."""
    assert run_example().returncode == 0

    syncs = [image for image in server.images for line in image.definition.dockerfile_commands if "uv sync" in line]
    assert len(syncs) == 1
    assert syncs[0].definition.gpu_config.gpu_type.lower() == "any"
