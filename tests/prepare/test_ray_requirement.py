"""What a checkout requires of Ray: forms of pins in pyproject.toml and uv.lock."""

from __future__ import annotations

import os
import random
import tomllib
from pathlib import Path

import pytest

from skyrl_modal import SpecError
from skyrl_modal.checkout import pinned_ray_version, read_ray_requirement
from skyrl_modal.gitfiles import result_cache
from skyrl_modal.gitfiles.result_cache import ResultCache
from skyrl_modal.ray_requirement import permits

LOCK = 'version = 1\n\n[[package]]\nname = "rayon"\nversion = "9"\n\n[[package]]\nname = "ray"\nversion = "2.57.0"\n'


@pytest.mark.parametrize(
    ("project", "version"),
    [
        ('[project]\ndependencies = ["ray==2.57.0"]', "2.57.0"),
        ('[project]\ndependencies = ["Ray [default] == 2.57.0"]', "2.57.0"),
        ('[project]\ndependencies = ["ray (==2.57.0)"]', "2.57.0"),
        ('[project]\ndependencies = ["ray===2.57.0"]', "2.57.0"),
        ("[project]\ndependencies = [\"ray[data,default]==2.57.0; python_version < '3.14'\"]", "2.57.0"),
        (
            "[project]\ndependencies = [\"ray==2.57.0; sys_platform == 'linux'\", \"ray==2.4; os_name == 'nt'\"]",
            "2.57.0",
        ),
        ("[project]\ndependencies = [\"ray==2.57.0; sys_platform != 'win32'\"]", "2.57.0"),
        ('[project.optional-dependencies]\na = ["ray[default]==2.57.0"]\nb = ["ray==2.57.0"]', "2.57.0"),
        ('[dependency-groups]\ndev = ["ray==2.57.0", {include-group = "x"}]', "2.57.0"),
        ('[project]\ndependencies = ["ray>=2.50"]\n[tool.uv]\nconstraint-dependencies = ["ray==2.57.0"]', "2.57.0"),
        ('[project]\ndependencies = ["ray==2.40"]\n[tool.uv]\noverride-dependencies = ["ray==2.57.0"]', "2.57.0"),
        (
            '[project]\ndependencies = ["ray @ https://x.invalid/ray-2.57.0-cp312-cp312-manylinux2014_x86_64.whl"]',
            "2.57.0",
        ),
        (
            '[project]\ndependencies = ["ray"]\n[tool.uv.sources]\nray = {url = "https://x.invalid/ray-2.57.0-cp312.whl"}',
            "2.57.0",
        ),
        (
            '[project]\ndependencies = ["ray"]\n[tool.uv.sources]\nray = [{path = "wheels/ray-2.57.0-py3.whl"}]',
            "2.57.0",
        ),
        ('[project]\ndependencies = ["ray==2.57.0"]\n[tool.uv.sources]\nray = {git = "https://x.invalid/ray"}', None),
        ('[project]\ndependencies = ["ray==2.57.0"]\noptional-dependencies.a = ["ray==2.40.0"]', None),
        ('[project]\ndependencies = ["ray>=2.50,<2.58"]', None),
        ('[project]\ndependencies = ["rayon==1.0", "ray-core==1.0", "xray==1.0"]', None),
        ('[project]\ndependencies = "ray==1"\n[tool]\nuv = 3', None),
    ],
)
def test_pin_without_a_lock(tmp_path: Path, project: str, version: str | None) -> None:
    """The version is the one that all requirements for Linux pin, as uv reads them."""
    (tmp_path / "pyproject.toml").write_text(project)

    assert pinned_ray_version(tmp_path) == version


@pytest.mark.parametrize(
    ("requirement", "version"),
    [("ray>=2.50", "2.57.0"), ("ray~=2.57.0", "2.57.0"), ("ray", "2.57.0"), ("vllm", "2.57.0"), ("ray==2.60", "2.60")],
)
def test_version_in_the_lock(tmp_path: Path, requirement: str, version: str) -> None:
    """Without a pin the version in uv.lock counts; a pin counts more than a lock that contradicts it."""
    (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = ["{requirement}"]\n')
    (tmp_path / "uv.lock").write_text(LOCK)

    assert pinned_ray_version(tmp_path) == version


def test_lock_with_several_versions(tmp_path: Path) -> None:
    """A lock with several versions of Ray names none."""
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["ray>=2.50"]\n')
    (tmp_path / "uv.lock").write_text(LOCK + '\n[[package]]\nname = "ray"\nversion = "2.40.0"\n')

    requirement = read_ray_requirement(tmp_path)

    assert requirement is not None
    assert (requirement.version, requirement.text) == (None, "ray>=2.50")
    assert requirement.permits("2.60.0")
    assert not requirement.permits("2.49.0")


@pytest.mark.parametrize(
    ("specifier", "permitted", "refused"),
    [
        ("==2.57", "2.57.0", "2.57.1"),
        ("==2.57.*", "2.57.3", "2.58.0"),
        ("~=2.57.1", "2.57.3", "2.58.0"),
        ("~=2.57", "2.60.0", "3.0.0"),
        (">=2.51,<2.58", "2.57.9", "2.58.0"),
        (">2.51", "2.51.1", "2.51.0"),
        ("<=2.57", "2.57.0", "2.57.1"),
        ("!=2.57.0", "2.57.1", "2.57.0"),
        ("!=2.57.*", "2.58.0", "2.57.1"),
        ("===2.57.0", "2.57.0", "2.57"),
        (">=2.57.0", "2.57.0", "2.57.0rc1"),
        (">=3.0.0.dev0", "3.0.0", "2.60.0"),
    ],
)
def test_specifiers(specifier: str, permitted: str, refused: str) -> None:
    """A version is compared by the rules of PEP 440."""
    assert permits(specifier, permitted)
    assert not permits(specifier, refused)


def test_unknown_specifier_permits_any_version() -> None:
    """A clause or a version that is not understood is no reason to refuse a run."""
    assert permits("@ https://x.invalid/ray.whl", "2.57.0")
    assert permits("==1.x", "2.57.0")
    assert permits("==2.57", "nightly")


@pytest.mark.parametrize("case", range(20))
def test_stored_requirement_is_the_current_one(tmp_path: Path, case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After edits with the same size and time, replacements and removals the result is the one without a cache."""
    if case % 2:  # nothing has changed recently: results are stored at once
        monkeypatch.setattr(result_cache, "SETTLING_NS", 0)
    draw, cache = random.Random(case), ResultCache(tmp_path / "cache")
    folders = [tmp_path, tmp_path / "skyrl-train"]
    folders[1].mkdir()
    for _ in range(12):
        path = draw.choice(folders) / draw.choice(["pyproject.toml", "uv.lock"])
        dependency = draw.choice(["ray==2.5%d.0", "ray>=2.5%d.0", "vllm==%d"]) % draw.randrange(10)
        lock = LOCK.replace("2.57", f"2.5{draw.randrange(10)}")
        text = lock if path.name == "uv.lock" else f'[project]\ndependencies = ["{dependency}"]\n'
        times = path.stat() if path.exists() else None
        if draw.random() < 0.2:
            path.unlink(missing_ok=True)
        elif draw.random() < 0.5:
            path.write_text(text)
        else:
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(path)
        if times is not None and path.exists():
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if case % 2:
            wait_until_later(path.parent)
        assert read_ray_requirement(tmp_path, cache) == read_ray_requirement(tmp_path)
        assert read_ray_requirement(tmp_path, cache) == read_ray_requirement(tmp_path)


def wait_until_later(folder: Path) -> None:
    """Wait until the clock of the file system has advanced, so that the next change has another time."""
    (folder / "probe").touch()
    before = (folder / "probe").stat().st_ctime_ns
    while (folder / "probe").stat().st_ctime_ns == before:
        (folder / "probe").touch()


def test_unchanged_files_are_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requirement is stored until one of its files changes; errors are not stored."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", -1_000_000_000)
    cache, project = ResultCache(tmp_path / "cache"), tmp_path / "pyproject.toml"
    project.write_text("[project")
    for _ in range(2):
        with pytest.raises(SpecError, match="not valid TOML"):
            read_ray_requirement(tmp_path, cache)
    project.write_text('[project]\ndependencies = ["ray==2.57.0"]')
    expected = read_ray_requirement(tmp_path, cache)
    with monkeypatch.context() as patch:
        patch.setattr(tomllib, "loads", None)
        assert read_ray_requirement(tmp_path, cache) == expected
    project.write_text('[project]\ndependencies = ["ray==2.58.0"]')
    assert pinned_ray_version(tmp_path) == "2.58.0"
    assert read_ray_requirement(tmp_path, cache) == read_ray_requirement(tmp_path) != expected
