"""Tests of configuration files: precedence, profiles, what a project may set, and damaged files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyrl_modal import BucketSpec, Launcher, MountSpec, SecretSpec, SpecError, VolumeSpec
from skyrl_modal.user_folders import config_folder

Write = Callable[[str], Path]


@pytest.fixture
def project(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the project's file, in a checkout that is the working directory."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout.parent / "config"))

    def write(text: str) -> Path:
        path = checkout / "skyrl-modal.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def user(project: Write) -> Write:
    """Return a function that writes the user's own file."""

    def write(text: str) -> Path:
        path = config_folder() / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_precedence(project: Write, user: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come first, then the environment, the profile, the project's file, the user's file, the default."""
    assert Launcher.from_config().gpu == "L4:1"
    user('gpu = "T4"\nretries = 1\n[profile.big]\ngpu = "B200"\n')
    assert Launcher.from_config().gpu == ("T4",)
    project('gpu = "A10"\n[profile.big]\nnodes = 2\n')
    assert Launcher.from_config().gpu == ("A10",)
    big = Launcher.from_config("big")
    assert (big.gpu, big.nodes, big.retries) == (("B200",), 2, 1)
    monkeypatch.setenv("MODAL_GPU", "H100:8")
    assert Launcher.from_config("big").gpu == "H100:8"
    assert Launcher.from_config("big", gpu="L40S").gpu == "L40S"


def test_profile_of_the_environment(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """$SKYRL_MODAL_PROFILE chooses a profile; the argument has precedence."""
    project("[profile.one]\nretries = 1\n[profile.two]\nretries = 2\n")
    monkeypatch.setenv("SKYRL_MODAL_PROFILE", "one")

    assert (Launcher.from_config().retries, Launcher.from_config("two").retries) == (1, 2)


def test_unknown_profile_is_refused(project: Write) -> None:
    """The error names the nearest profile."""
    project("[profile.a100]\nretries = 1\n")

    with pytest.raises(SpecError, match=r"Did you mean a100\?"):
        Launcher.from_config("a10")


def test_buckets_of_the_user(project: Write, user: Write) -> None:
    """Buckets are mounted beside the volumes; a project's file may not declare any."""
    table = '[[buckets]]\nname = "sets"\nmount_path = "/mnt/sets"\nsecret = "aws"\nread_only = true\n'
    bucket = BucketSpec(name="sets", mount_path="/mnt/sets", secret="aws", read_only=True)
    user(table)
    assert Launcher.from_config().volumes == (VolumeSpec(), bucket)
    project('[[volumes]]\nname = "mine"\n')
    assert Launcher.from_config().volumes == (VolumeSpec(name="mine"), bucket)

    project(table)

    with pytest.raises(SpecError, match=r"skyrl-modal.toml: buckets = .*Set it with --bucket or in "):
        Launcher.from_config()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('name = "Sets"\nmount_path = "/mnt/sets"', "lowercase"),
        ('name = "sets"', "each table needs mount_path"),
        ('name = "sets"\nmount_path = "/mnt/sets"\nsecrets = "a"', "Did you mean secret"),
        ('name = "sets"\nmount_path = "/mnt/sets"\nread_only = 1', "true or false"),
    ],
)
def test_invalid_buckets(user: Write, table: str, message: str) -> None:
    """A table of a bucket is checked as the others are, and the error names the file."""
    user(f"[[buckets]]\n{table}\n")

    with pytest.raises(SpecError, match=message) as caught:
        Launcher.from_config()

    assert "config.toml: buckets" in str(caught.value)


def test_launcher_reads_no_file(project: Write) -> None:
    """``Launcher(...)`` itself has the defaults, whatever files there are."""
    project("retries = 3\n")

    assert Launcher().retries == 0


def test_every_form_of_value(project: Write, user: Write, checkout: Path) -> None:
    """Tables, lists and variables become the specs of the launcher."""
    (checkout / "data").mkdir()
    project(
        """
        gpu = ["H100:8", "A100:8"]
        timeout = 90
        tags = "one"
        should_retry = [1, 137]
        exclude = ["*.ckpt"]
        env = { A = 1, B = "x" }
        ray = { dashboard = true, env = { C = "2" } }
        volumes = [{ name = "mine", mount_path = "/root/mine", read_only = true }]
        [image]
        pip = ["wandb"]
        env = { D = "3" }
        [[mounts]]
        local_path = "data"
        remote_path = "/root/other"
        """
    )
    user('secrets = ["WANDB_API_KEY", { name = "hf", keys = ["HF_TOKEN"] }]\nenv = { B = "y", E = "z" }\n')

    made = Launcher.from_config()

    assert (made.gpu, made.timeout, made.tags, made.should_retry) == (("H100:8", "A100:8"), 90.0, ("one",), (1, 137))
    assert made.env == {"A": "1", "B": "x", "E": "z"}
    assert made.ray is not None
    assert (made.ray.dashboard, made.ray.env) == (True, {"C": "2"})
    assert (made.image.pip, made.image.env) == (("wandb",), {"D": "3"})
    assert made.volumes == (VolumeSpec(name="mine", mount_path="/root/mine", read_only=True),)
    other = MountSpec(local_path=checkout / "data", remote_path="/root/other")
    assert made.mounts == (MountSpec(exclude=["*.ckpt"]), other)
    assert made.secrets == ("WANDB_API_KEY", SecretSpec("hf", keys=["HF_TOKEN"]))


def test_ray_can_be_switched_off(project: Write) -> None:
    """``ray = false`` is no Ray, and ``none`` removes a value of a file with a lower precedence."""
    project('ray = false\ngpu = "none"\nresume = "auto"\n[profile.once]\nresume = "none"\n')

    made = Launcher.from_config("once")

    assert (made.ray, made.gpu, made.resume) == (None, None, None)
    assert Launcher.from_config().resume == "auto"


def test_nearest_folder_counts(project: Write, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the nearest folder is used, and that of the checkout if the working directory is elsewhere."""
    project("retries = 1\n")
    inner = checkout / "skyrl"
    monkeypatch.chdir(inner)
    assert Launcher.from_config().retries == 1
    (inner / "pyproject.toml").write_text("[tool.skyrl-modal]\nretries = 2\n")
    assert Launcher.from_config().retries == 2
    elsewhere = checkout.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Launcher.from_config(checkout=checkout).retries == 1
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(checkout))
    assert Launcher.from_config().retries == 1


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('backend = "local"', "backend"),
        ('secrets = ["MY_SECRET_NAME"]', "secrets"),
        ('image = { registry_secret = "x" }', "image.registry_secret"),
        ('[profile.a]\nbackend = "local"', "backend"),
        ('[[mounts]]\nlocal_path = "/etc"\nremote_path = "/root/x"', "mounts"),
        ('[[mounts]]\nlocal_path = "../.."\nremote_path = "/root/x"', "mounts"),
        ('[[mounts]]\nlocal_path = "~"\nremote_path = "/root/x"', "mounts"),
        ('[[mounts]]\nlocal_path = "link"\nremote_path = "/root/x"', "mounts"),
        ('checkout = "/"', "checkout"),
    ],
)
def test_project_may_not_set(project: Write, user: Write, checkout: Path, text: str, key: str) -> None:
    """The file of a checkout cannot choose the backend, secrets, or folders outside of its own. The user's file can."""
    (checkout / "link").symlink_to("/etc")
    path = project(text)

    with pytest.raises(SpecError) as caught:
        Launcher.from_config("a" if "profile" in text else None)

    assert caught.value.field == key
    assert str(config_folder()) in caught.value.remedy
    assert "MY_SECRET_NAME" not in str(caught.value)
    path.unlink()
    if key in ("backend", "secrets"):
        user(text)
        Launcher.from_config("a" if "profile" in text else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("retires = 1", "skyrl-modal.toml: retires = 1: there is no such key. Did you mean retries?"),
        ("[profile.x]\ngup = 1", "skyrl-modal.toml: profile.x.gup = 1: there is no such key. Did you mean gpu?"),
        ("nodes = true", "skyrl-modal.toml: nodes = true: pass a whole number"),
        ("nodes = 0", "skyrl-modal.toml: nodes = 0: pass a whole number of at least 1"),
        ('timeout = "soon"', 'skyrl-modal.toml: timeout = "soon": pass a duration'),
        ("timeout = nan", "skyrl-modal.toml: timeout = NaN: pass a duration"),
        ('resume = "atuo"', 'skyrl-modal.toml: resume = "atuo": pass auto or none. Did you mean auto?'),
        ('gpu = "L4:0"', 'skyrl-modal.toml: gpu = ["L4:0"]: write NAME or NAME:COUNT'),
        ("region = 3", "skyrl-modal.toml: region = 3: pass a text"),
        ('rdma = "yes"', 'skyrl-modal.toml: rdma = "yes": pass true or false'),
        ("env = { A = [] }", "skyrl-modal.toml: env.A = []: pass a text or a number"),
        ('image = "x"', 'skyrl-modal.toml: image = "x": write a table, such as [image]'),
        ("profile = 3", "skyrl-modal.toml: profile = 3: write a table for each profile"),
        ('[image]\npython = "two"', 'skyrl-modal.toml: image.python = "two": pass a minor version'),
        ("[[volumes]]\nnmae = 1", "skyrl-modal.toml: volumes.nmae = 1: there is no such key. Did you mean name?"),
        ('[[volumes]]\nversion = "1"', 'skyrl-modal.toml: volumes.version = "1": pass a whole number'),
        ("should_retry = [0]", "skyrl-modal.toml: should_retry = [0]: pass exit codes from 1 to 255"),
        ('app_name = "a b"', 'skyrl-modal.toml: app_name = "a b": use 1 to 64 letters'),
    ],
)
def test_invalid_value_names_file_and_key(project: Write, text: str, expected: str) -> None:
    """The message begins with the file, the key and the value."""
    project(text)

    with pytest.raises(SpecError) as caught:
        Launcher.from_config("x" if "[profile.x]" in text else None)

    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "data", [b"[[[", b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"#" * (1 << 20) + b"\n"]
)
def test_damaged_file_is_an_error_of_the_spec(project: Write, data: bytes) -> None:
    """A file that is not TOML, or is too large, is named in a SpecError."""
    path = project("")
    path.write_bytes(data)

    with pytest.raises(SpecError) as caught:
        Launcher.from_config()

    assert caught.value.source == str(path)


@pytest.mark.timeout(20)
def test_named_pipe_is_refused(project: Write, checkout: Path) -> None:
    """A named pipe of this name is not waited for."""
    os.mkfifo(checkout / "skyrl-modal.toml")

    with pytest.raises(SpecError, match="named pipe"):
        Launcher.from_config()


def test_pyproject_of_others_is_not_parsed(project: Write, checkout: Path) -> None:
    """A damaged pyproject.toml without the table has no effect here."""
    (checkout / "pyproject.toml").write_text("[[[")

    assert Launcher.from_config().retries == 0


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["gpu", "timeout", "env", "image", "ray", "mounts", "volumes", "tags", "should_retry"]),
    value=_VALUES,
)
def test_any_value_is_accepted_or_refused(project: Write, key: str, value: object) -> None:
    """No value of a file leads to another exception than SpecError."""

    text = _to_toml(value)
    if text is None:
        return
    project(f"{json.dumps(key)} = {text}\n")
    with contextlib.suppress(SpecError):
        Launcher.from_config()


def _to_toml(value: object) -> str | None:
    """Return a value in TOML; None for one that TOML does not have."""

    if value is None:
        return None
    if isinstance(value, list):
        items = [_to_toml(item) for item in value]
        return None if None in items else f"[{', '.join(map(str, items))}]"
    if isinstance(value, dict):
        pairs = [(json.dumps(name), _to_toml(item)) for name, item in value.items()]
        if any(item is None for _, item in pairs):
            return None
        return "{" + ", ".join(f"{name} = {item}" for name, item in pairs) + "}"
    if isinstance(value, float):
        return str(value)
    return json.dumps(value).replace("\x7f", "\\u007F")
