"""The search for the checkout, and the Ray version that it pins."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal.checkout import pinned_ray_version
from skyrl_modal.checkout_search import find_checkout
from skyrl_modal.errors import CheckoutNotFound, SpecError


def test_nearest_folder_above_is_found(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument takes precedence over the variable, and the variable over the working directory."""
    other = checkout.parent / "other"
    (other / "skyrl-gym").mkdir(parents=True)
    monkeypatch.chdir(checkout / "skyrl-gym" / "skyrl_gym")
    assert find_checkout() == checkout
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(other / "skyrl-gym"))
    assert find_checkout() == other
    assert find_checkout(checkout / "skyrl") == checkout


@pytest.mark.parametrize("source", ["argument", "variable"])
def test_wrong_folder_is_an_error(checkout: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """If the given folder is not in a checkout, no other folder is searched."""
    monkeypatch.chdir(checkout)
    outside = checkout.parent
    if source == "variable":
        monkeypatch.setenv("SKYRL_REPO_ROOT", str(outside))
    with pytest.raises(CheckoutNotFound) as caught:
        find_checkout(outside if source == "argument" else None)
    assert [folder for _, folder in caught.value.searched] == [outside]


@pytest.mark.parametrize(
    ("project", "version"),
    [
        ('dependencies = ["ray==2.51.1"]', "2.51.1"),
        ("optional-dependencies.a = [\"ray[default]==2.48.0 ; python_version > '3.10'\"]", "2.48.0"),
        ('dependencies = ["ray==2.51.1"]\noptional-dependencies.a = ["ray[default]==2.51.1"]', "2.51.1"),
        ('dependencies = ["ray==2.51.1"]\noptional-dependencies.a = ["ray==2.48.0"]', None),
        ('dependencies = ["ray>=2.51", "rayon==1.0"]', None),
        ("", None),
    ],
)
def test_pinned_ray_version(tmp_path: Path, project: str, version: str | None) -> None:
    """The version is the only one that a requirement of Ray pins with ``==``."""
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{project}\n")
    assert pinned_ray_version(tmp_path) == version


def test_pinned_ray_version_of_the_older_layout(tmp_path: Path) -> None:
    """Without a pyproject.toml in the root, the one in skyrl-train/ is read."""
    (tmp_path / "skyrl-train").mkdir()
    (tmp_path / "skyrl-train" / "pyproject.toml").write_text('[project]\ndependencies = ["ray==2.51.1"]\n')
    assert pinned_ray_version(tmp_path) == "2.51.1"


def test_invalid_project_file_is_an_error(tmp_path: Path) -> None:
    """A pyproject.toml that is not TOML is an error with its path."""
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(SpecError) as caught:
        pinned_ray_version(tmp_path)
    assert (caught.value.field, caught.value.value) == ("checkout", str(tmp_path / "pyproject.toml"))
