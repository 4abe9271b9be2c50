"""New files outside of every volume are reported at the end, since they are lost."""

from __future__ import annotations

import io

import pytest

from skyrl_modal import RunResult
from tests.conftest import MakeLauncher

WRITE = "head -c 3000000 /dev/urandom > "


def run(make: MakeLauncher, command: str, capfd: pytest.CaptureFixture[str], **fields: object) -> tuple[RunResult, str]:
    """Run a command; return the result and the warning about its files, which is empty if there is none."""
    result = make(**fields).run(command, output=io.BytesIO())
    lines = capfd.readouterr().err.splitlines()
    return result, next((line for line in lines if "are in no volume" in line), "")


def test_files_outside_of_volumes_are_reported(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """Folders with new files are listed with number and size, the largest first; small ones only with results."""
    command = (
        f"mkdir -p outputs/deep plain /root/ckpts-of-test && {WRITE} /root/ckpts-of-test/model.bin; "
        f"{WRITE} /tmp/scratch.bin; echo 1 > outputs/deep/metrics.jsonl; echo 1 > plain/notes; "
        "echo 1 > /root/data/saved"
    )

    result, warning = run(launcher, command, capfd)

    assert result.returncode == 0
    assert "/root/ckpts-of-test (1 file, 3.0 MB), " in warning
    assert "/tmp/scratch.bin (1 file, 3.0 MB)" in warning
    assert "/root/SkyRL/outputs (1 file, 2 bytes)" in warning
    assert "such as /root/data" in warning
    assert "plain" not in warning
    assert "saved" not in warning
    stored = {item.path: (item.files, item.bytes) for item in result.unsaved}
    assert stored["/root/ckpts-of-test"] == (1, 3_000_000)


@pytest.mark.parametrize(
    "command",
    [
        "true",
        f"{WRITE} /root/data/model.pt",
        f"mkdir -p .cache/x .venv && {WRITE} .cache/x/model.pt && cp .cache/x/model.pt .venv/; {WRITE} uv.lock",
        f"mkdir env && touch env/pyvenv.cfg && {WRITE} env/model.pt",
        f"{WRITE} model.pt; rm model.pt",
        "ln -s /root/data/none model.pt; mkdir ckpts; touch ckpts/model.pt",
        "cat train.py; touch train.py",
    ],
)
def test_other_files_are_not_reported(launcher: MakeLauncher, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Files on a volume, caches, environments, empty files and removed files are no reason for a warning."""
    result, warning = run(launcher, command, capfd)

    assert (result.returncode, warning, result.unsaved) == (0, "", ())


def test_failed_run_reports_its_files(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """The files of a failed command and of one that exceeds its timeout are reported, also in result.json."""
    failed, warning = run(launcher, f"{WRITE} a.pt; exit 3", capfd)
    assert failed.returncode == 3
    assert "/root/SkyRL/a.pt (1 file, 3.0 MB)" in warning

    late, warning = run(launcher, f"{WRITE} a.pt; sleep 600", capfd, timeout=2, grace=1)
    assert late.returncode == 124
    assert "/root/SkyRL/a.pt (1 file, 3.0 MB)" in warning


def test_paths_are_masked(
    launcher: MakeLauncher, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of a secret in a path is masked in the warning and in the result."""
    monkeypatch.setenv("TOKEN_OF_TEST", "s3cret-value")

    result, warning = run(
        launcher, f'mkdir "$TOKEN_OF_TEST"; {WRITE} "$TOKEN_OF_TEST/a.pt"', capfd, secrets=["TOKEN_OF_TEST"]
    )

    assert "/root/SkyRL/******** (1 file" in warning
    assert "s3cret-value" not in repr(result)
