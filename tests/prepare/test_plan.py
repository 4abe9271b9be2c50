"""Tests of plans: what is found before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal import CheckoutNotFound, Launcher, MountSpec, SpecError, VolumeSpec
from skyrl_modal.protocol.codec import from_json, to_json
from skyrl_modal.protocol.job import CheckoutFacts, Job


def test_unmounted_workdir_is_refused(checkout: Path) -> None:
    """A workdir that contains no mounted file raises SpecError."""
    (checkout / "empty").mkdir()

    for workdir in ("nowhere", "empty"):
        with pytest.raises(SpecError) as caught:
            Launcher(backend="local", checkout=checkout, workdir=workdir).plan("true")
        assert (caught.value.field, caught.value.value) == ("workdir", workdir)


def test_workdir_outside_of_mounts_is_refused(checkout: Path) -> None:
    """An absolute workdir that is in no mount and on no volume raises SpecError."""
    with pytest.raises(SpecError, match="in no mount and on no volume"):
        Launcher(backend="local", checkout=checkout, workdir="/opt").plan("true")


def test_workdir_may_be_on_a_volume(checkout: Path) -> None:
    """A workdir on a volume is accepted, since the files of a volume are not known."""
    assert (
        Launcher(backend="local", checkout=checkout, workdir="/root/data/x").plan("true").job.workdir == "/root/data/x"
    )


def test_missing_mounted_folder_is_refused(checkout: Path, tmp_path: Path) -> None:
    """A mount whose folder does not exist raises SpecError."""
    mounts = [MountSpec(), MountSpec(local_path=tmp_path / "none", remote_path="/root/none")]

    with pytest.raises(SpecError, match="none"):
        Launcher(backend="local", checkout=checkout, mounts=mounts).plan("true")


def test_checkout_is_found(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout is searched for upwards from the working directory, or from $SKYRL_REPO_ROOT."""
    monkeypatch.chdir(checkout / "skyrl")
    assert Launcher(backend="local").plan("true").selections[0].root == checkout

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(checkout / "skyrl-gym"))
    assert Launcher(backend="local").plan("true").selections[0].root == checkout


def test_checkout_is_found_from_the_script(checkout: Path, tmp_path: Path) -> None:
    """The checkout is searched for upwards from the script that was started."""
    script = checkout / "launch.py"
    script.write_text("from skyrl_modal import Launcher; print(Launcher(backend='local').plan('true').job.repo_root)")

    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout == "/root/SkyRL\n"


def test_missing_checkout_names_searched_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the searched folders and the ways to name a checkout."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CheckoutNotFound) as caught:
        Launcher(backend="local").run("true")

    assert tmp_path in [folder for _, folder in caught.value.searched]
    assert "SKYRL_REPO_ROOT" in str(caught.value)


def test_plan_has_checkout_and_image(checkout: Path) -> None:
    """The job has the state of the checkout, the image of its Ray version, and the number of GPUs."""
    (checkout / "train.py").write_text("edited")
    (checkout / "new.py").write_text("")

    plan = Launcher(checkout=checkout, backend="modal", gpu="A100:4").plan("true")

    assert plan.job.image == "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0"
    assert plan.job.checkout is not None
    assert (plan.job.checkout.changed_files, plan.job.checkout.ray_version) == (2, "2.57.0")
    assert plan.job.gpus_per_node == 4
    assert "2 files changed" in str(plan)
    assert plan.findings == ()


def test_unknown_commit_is_a_finding(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If git cannot read the state of the checkout, the job has no commit, with a warning."""
    monkeypatch.setenv("PATH", "")

    plan = Launcher(checkout=checkout, backend="local", ray=None).plan("true")

    assert plan.job.checkout is not None
    assert (plan.job.checkout.commit, plan.job.checkout.changed_files) == (None, None)
    assert "commit-unknown" in [finding.code for finding in plan.findings]


def test_requests_with_different_counts_are_counted(checkout: Path) -> None:
    """If the GPU requests differ in their number, the container counts its GPUs."""
    job = Launcher(checkout=checkout, backend="modal", gpu=["H100:8", "A100:4"]).plan("true").job

    assert job.gpus_per_node is None


def test_local_job_has_no_image(checkout: Path) -> None:
    """The local backend has no image and uses the GPUs of the machine."""
    job = Launcher(checkout=checkout, backend="local", gpu="A100:4").plan("true").job

    assert (job.image, job.gpus_per_node) == ("", None)


def test_unpublished_ray_version_is_a_finding(checkout: Path) -> None:
    """A checkout that pins a Ray version without an image uses the default image, with a warning."""
    text = (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(text.replace("2.57.0", "9.9.9"))

    plan = Launcher(checkout=checkout, backend="modal").plan("true")

    assert plan.job.image == "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"
    assert [finding.code for finding in plan.findings] == ["image-ray-version"]
    assert "9.9.9" in plan.warnings[0]
    assert not Launcher(checkout=checkout, backend="local", ray=None).plan("true").findings


def test_plan_starts_nothing(checkout: Path) -> None:
    """Planning writes nothing, and the job can be sent as JSON."""
    before = sorted(os.listdir(checkout))

    plan = Launcher(checkout=checkout, backend="local").plan("touch /root/SkyRL/x")

    assert sorted(os.listdir(checkout)) == before
    assert from_json(Job, to_json(plan.job)) == plan.job


def test_job_contains_no_local_path(checkout: Path, tmp_path: Path) -> None:
    """The job, which is written to a shared volume, contains no path of the caller's machine."""
    other = tmp_path / "other"
    other.mkdir()
    mounts = [MountSpec(), MountSpec(local_path=other, remote_path="/root/other")]

    job = Launcher(checkout=checkout, backend="local", mounts=mounts).plan("true").job

    assert str(tmp_path) not in to_json(job)


def test_job_has_name_and_tags(checkout: Path) -> None:
    """Name and tags are part of the job and of the plan's text."""
    plan = Launcher(checkout=checkout, backend="local", name="baseline", tags=["gsm8k", "v2"]).plan("true")

    assert (plan.job.name, plan.job.tags) == ("baseline", ("gsm8k", "v2"))
    assert ("name", "baseline") in plan.rows()
    assert ("tags", "gsm8k, v2") in plan.rows()


def test_run_folder_is_on_the_first_writable_volume(checkout: Path) -> None:
    """The records are written to the first volume that is not read-only, else below /root."""
    read_only = VolumeSpec(name="models", mount_path="/root/models", read_only=True)

    both = Launcher(checkout=checkout, backend="local", volumes=[read_only, VolumeSpec()]).plan("true").job
    none = Launcher(checkout=checkout, backend="local", volumes=[read_only]).plan("true").job

    assert both.run_folder == f"/root/data/.skyrl_modal/runs/{both.run_id}"
    assert both.data_root == "/root/models"
    assert none.run_folder == f"/root/.skyrl_modal/runs/{none.run_id}"


def test_checkout_outside_of_git(tmp_path: Path) -> None:
    """A checkout that is not in a git repository has no commit."""
    (tmp_path / "plain" / "skyrl-gym").mkdir(parents=True)
    (tmp_path / "plain" / "skyrl-gym" / "x").write_text("")

    plan = Launcher(checkout=tmp_path / "plain", backend="local").plan("true")

    assert plan.job.checkout == CheckoutFacts()


def test_import_loads_nothing_else() -> None:
    """Importing the package imports no other package, since some may be missing in an image."""
    script = (
        "import sys; import skyrl_modal; "
        "print([name for name in ('modal', 'attrs', 'click', 'rich', 'gitignore_parser') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
