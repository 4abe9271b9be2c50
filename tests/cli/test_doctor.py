"""``skyrl-modal doctor``: exit codes, remedies, and the archive for a bug report."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
KEY = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vX7zA9cD1fG3hJ5"


@pytest.fixture
def doctor(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, without an account."""
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL", "SKYRL_MODAL_BACKEND"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)

    return call


def checks_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    return {check["subject"]: check for check in json.loads(done.stdout)}


def test_missing_token_matters_for_modal_only(doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 1 if the chosen backend cannot execute a run, by the option or by the variable."""
    assert doctor("doctor").returncode == 0
    assert doctor("doctor", "--backend", "local").returncode == 0
    chosen = doctor("doctor", "--backend", "modal", "--json")
    assert chosen.returncode == 1
    assert "run `modal setup`" in str(checks_of(chosen)["modal"]["detail"])
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "modal")
    assert doctor("doctor").returncode == 1


def test_proxy_that_the_client_cannot_use(doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy needs a further package, or has to be switched off for Modal's client."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    refused = checks_of(doctor("doctor", "--json"))["proxies"]
    monkeypatch.setenv("MODAL_DISABLE_API_PROXY", "1")
    direct = checks_of(doctor("doctor", "--json"))["proxies"]

    assert not refused["ok"]
    assert "pip install 'modal[api-proxy-support]'" in str(refused["detail"])
    assert direct["ok"]


def test_no_remedy_names_a_package_that_is_not_published(doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray and bubblewrap, the remedies name packages that can be installed."""
    monkeypatch.setenv("PATH", "/nowhere")

    done = doctor("doctor", "--backend", "local")

    assert "pip install skyrl" not in done.stdout.replace('"', "")


def test_archive_has_no_secrets(doctor: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of secret variables and keys in the output are removed, and the file is private."""
    monkeypatch.setenv("RAY_PASSWORD", "swordfish-42")
    monkeypatch.setenv("HTTP_PROXY", "http://me:hunter2hunter2@127.0.0.1:9")
    monkeypatch.setenv("SKYRL_EXAMPLE", "visible")
    command = f"echo first; echo swordfish-42; echo token={KEY}; echo last"
    submitted = doctor("submit", "--backend", "local", "--no-ray", command)
    run_id = submitted.stdout.strip()
    assert doctor("wait", run_id).returncode == 0
    target = tmp_path / "bundle.tar.gz"

    done = doctor("doctor", "--bundle", str(target), "--run", run_id)

    assert done.returncode == 0
    assert "Look at it before you send it" in done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        contents = {entry.name: archive.extractfile(entry).read().decode() for entry in archive}  # type: ignore[union-attr]  # all are files
    everything = "\n".join(contents.values())
    for secret in ("swordfish-42", KEY, "hunter2hunter2", str(Path.home())):
        assert secret not in everything
    assert "SKYRL_EXAMPLE=visible" in contents["skyrl-modal/variables.txt"]
    assert "RAY_PASSWORD=(removed)" in contents["skyrl-modal/variables.txt"]
    assert contents["skyrl-modal/run/output.log"].startswith("first\n(removed)\n")
    assert "last" in contents["skyrl-modal/run/output.log"]
    assert json.loads(contents["skyrl-modal/run/result.json"])["returncode"] == 0


def test_archive_replaces_nothing(doctor: Command, tmp_path: Path) -> None:
    """An existing file is kept, and the option for a run needs the archive."""
    target = tmp_path / "notes.txt"
    target.write_text("mine")

    done = doctor("doctor", "--bundle", str(target))

    assert done.returncode == 125
    assert target.read_text() == "mine"
    assert str(target) in done.stderr
    assert doctor("doctor", "--run", "latest").returncode == 2
