"""Tests of declared values: an invalid value raises SpecError where it is written."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import (
    CheckoutNotFound,
    ImageSpec,
    Launcher,
    MountSpec,
    RaySpec,
    SecretSpec,
    SpecError,
    VolumeSpec,
)
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.fields import check_whole_number, is_below
from skyrl_modal.spec.gpu import GpuRequest
from skyrl_modal.spec.image_steps import AptInstall
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.stored import decode_spec, encode_spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "kubernetes"}, "backend='kubernetes'"),
        ({"backend": 3}, "backend=3"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"timeout": "1h later"}, "timeout='1h later'"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": True}, "timeout=True"),
        ({"grace": 0}, "grace=0"),
        ({"lease": 0}, "lease=0"),
        ({"lease": "soon"}, "lease='soon'"),
        ({"resume": "always"}, "resume='always'"),
        ({"resume": True}, "resume=True"),
        ({"budget": 0}, "budget=0"),
        ({"budget": -1.5}, "budget=-1.5"),
        ({"budget": float("inf")}, "budget=inf"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"budget": "300"}, "budget='300'"),
        ({"budget": True}, "budget=True"),
        ({"stall": 0}, "stall=0"),
        ({"stall": "soon"}, "stall='soon'"),
        ({"start_deadline": 0}, "start_deadline=0"),
        ({"start_deadline": "soon"}, "start_deadline='soon'"),
        ({"start_deadline": True}, "start_deadline=True"),
        ({"gpu": "A100:x"}, "gpu='A100:x'"),
        ({"gpu": "A100:0"}, "gpu='A100:0'"),
        ({"gpu": ""}, "gpu=''"),
        ({"gpu": []}, "gpu=\\[\\]"),
        ({"gpu": "H100:8,"}, "gpu='H100:8,'"),
        ({"gpu": ["H100:8", 8]}, "gpu="),
        ({"nodes": 0}, "nodes=0"),
        ({"nodes": 2.0}, "nodes=2.0"),
        ({"nodes": True}, "nodes=True"),
        ({"rdma": True}, "rdma=True.*nodes=2"),
        ({"nodes": 2, "rdma": "yes"}, "rdma='yes'"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 11}, "retries=11.*0 to 10"),
        ({"should_retry": [0]}, "should_retry="),
        ({"cpu": 0}, "cpu=0"),
        ({"cpu": float("nan")}, "cpu=nan"),
        ({"cpu": 1e7}, "cpu=10000000.0: pass a number from 0.125 to 4,294,967, or None"),
        ({"memory": 2**32}, "memory=4294967296"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"workdir": "../elsewhere"}, "workdir='../elsewhere'"),
        ({"workdir": ""}, "workdir=''"),
        ({"app_name": "my app"}, "app_name='my app'"),
        ({"name": "my run"}, "name='my run'"),
        ({"name": 3}, "name=3"),
        ({"tags": ["two parts"]}, "tags="),
        ({"tags": ["a,b"]}, "tags="),
        ({"tags": 3}, "tags=3"),
        ({"env": {"A B": "1"}}, "env\\['A B'\\]"),
        ({"env": {"A": None}}, "env\\['A'\\]"),
        ({"env": "A=1"}, "env='A=1'"),
        ({"image": "ubuntu"}, "image='ubuntu'"),
        ({"ray": True}, "ray=True"),
        ({"volumes": [VolumeSpec(), VolumeSpec(name="b")]}, "volumes='/root/data'"),
        ({"volumes": VolumeSpec()}, "volumes="),
        ({"volumes": "data"}, "volumes='data'"),
        ({"mounts": [MountSpec(remote_path="/root/data/x")]}, "mounts='/root/data/x'.*outside of it"),
        ({"mounts": [MountSpec(remote_path="/root/data")]}, "mounts='/root/data'"),
        ({"mounts": [MountSpec(), MountSpec(local_path="/tmp")]}, "mounts='/root/SkyRL'"),
        ({"mounts": ["/tmp"]}, "mounts="),
    ],
)
def test_invalid_field_of_the_launcher(fields: dict[str, Any], message: str) -> None:
    """An invalid field raises SpecError with its name, its value and a remedy."""
    with pytest.raises(SpecError, match=message):
        Launcher(**fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VolumeSpec(mount_path="data"), "mount_path='data'"),
        (lambda: VolumeSpec(mount_path="/root/../etc"), "mount_path="),
        (lambda: VolumeSpec(mount_path="/"), "mount_path='/'"),
        (lambda: VolumeSpec(name="a/b"), "name='a/b'"),
        (lambda: VolumeSpec(version=3), "version=3"),
        (lambda: MountSpec(remote_path="SkyRL"), "remote_path='SkyRL'"),
        (lambda: MountSpec(local_path=3), "local_path=3"),
        (lambda: MountSpec(exclude=[1]), "exclude="),
        (lambda: ImageSpec(base="two parts"), "base='two parts'"),
        (lambda: ImageSpec(python="3"), "python='3'"),
        (lambda: ImageSpec(pip=3), "pip=3"),
        (lambda: ImageSpec(base="image\udc80"), r"base='image\\udc80': pass valid Unicode"),
        (lambda: ImageSpec(commands=["true", "echo \udc80"]), r"commands='echo \\udc80'"),
        (lambda: ImageSpec(env={"A": "\udc80"}), r"env='\\udc80'"),
        (lambda: AptInstall("\udc80"), r"packages='\\udc80'"),
        (lambda: RaySpec(port=80), "port=80"),
        (lambda: RaySpec(port=16379), "port=16379.*workers"),
        (lambda: RaySpec(num_cpus=0), "num_cpus=0"),
        (lambda: RaySpec(object_store_memory=1), "object_store_memory=1"),
        (lambda: RaySpec(start_timeout="never"), "start_timeout='never'"),
        (lambda: RaySpec(on_worker_loss="continue"), "on_worker_loss='continue'.*wait"),
        (lambda: SecretSpec("a secret"), "name='a secret'"),
    ],
)
def test_invalid_field_of_a_spec(make: Any, message: str) -> None:
    """An invalid field raises SpecError with its name, its value and a remedy."""
    with pytest.raises(SpecError, match=message):
        make()


def test_secret_value_is_not_repeated() -> None:
    """An error about a secret that was passed by value does not contain the value."""
    with pytest.raises(SpecError) as caught:
        Launcher(secrets=["WANDB_API_KEY=hunter2"])

    assert "hunter2" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("Z900", ""), ("A1000", "A100"), ("H100-SXM", "H100"), ("RTX-6000", "RTX-PRO-6000"), ("MI300X", ""), ("4090", "")],
)
def test_unknown_gpu_is_a_warning(name: str, suggested: str) -> None:
    """A GPU type that is not known is accepted with a warning, also if its name resembles a known one."""
    with pytest.warns(UserWarning, match=f"{name} is not a known GPU type.*{suggested}"):
        launcher = Launcher(gpu=f"{name}:2")

    assert launcher.gpu_requests == (GpuRequest(name, 2),)


@pytest.mark.parametrize(
    "name", ["GB200", "gb300", "L40", "GH200", "B300", "B200+", "H100!", "A10", "RTX-PRO-6000", "any"]
)
def test_known_gpus_need_no_warning(name: str) -> None:
    """The types that Modal documents, or that users have recorded, are accepted in upper and lower case."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Launcher(gpu=name).gpu_requests == (GpuRequest(name.upper(), 1),)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(1, 100))
def test_durations_are_sums(days: int, hours: int, minutes: int, seconds: int) -> None:
    """Text, timedelta and number of the same duration are equal."""
    delta = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

    assert parse_duration(f"{days}d{hours}h {minutes}m{seconds}s") == parse_duration(delta) == delta.total_seconds()
    assert parse_duration(delta.total_seconds()) == delta.total_seconds()


def test_evolve_creates_a_variant() -> None:
    """attrs.evolve returns a changed copy. A launcher itself cannot be changed."""
    first = Launcher(backend="local", gpu=["H100:8", "A100-80GB:8"], timeout="90m", env={"A": 1})
    second = attrs.evolve(first, timeout="2h")

    assert (first.timeout, second.timeout, second.env, second.gpu) == (5400, 7200, {"A": "1"}, first.gpu)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.timeout = 1  # type: ignore[misc]  # the refusal is what is tested


def test_defaults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables replace the defaults of gpu, app_name and backend."""
    assert (Launcher().gpu, Launcher().app_name, Launcher().backend) == ("L4:1", "my_skyrl_app", "modal")
    monkeypatch.setenv("MODAL_GPU", "H100:2")
    monkeypatch.setenv("MODAL_APP_NAME", "mine")
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")

    assert (Launcher().gpu, Launcher().app_name, Launcher().backend) == ("H100:2", "mine", "local")


def test_single_tag_is_a_tuple() -> None:
    """A single tag is accepted in place of a list."""
    assert Launcher(tags="gsm8k").tags == ("gsm8k",)


def test_folder_that_is_not_a_checkout(tmp_path: Path) -> None:
    """A checkout without skyrl-gym/ raises CheckoutNotFound where it is declared."""
    with pytest.raises(CheckoutNotFound):
        Launcher(checkout=tmp_path)


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/", "/a", False), ("/a", "/", True)],
)
def test_path_is_below_folder(path: str, folder: str, expected: bool) -> None:
    """A path is below a folder if it is the folder or is inside it."""
    assert is_below(path, folder) is expected


@pytest.mark.parametrize(("value", "is_valid"), [(0, True), (1, False), (-1, False), (0.0, False), (False, False)])
def test_whole_number_in_a_range(value: object, is_valid: bool) -> None:
    """A whole number has to be inside of both bounds, also if a bound is 0."""
    if is_valid:
        check_whole_number("rank", value, 0, 0)
        return
    with pytest.raises(SpecError) as caught:
        check_whole_number("rank", value, 0, 0)
    assert "0 to 0" in caught.value.remedy


def test_stored_spec_is_restored(checkout: Path, tmp_path: Path) -> None:
    """A spec with a value in every field is equal after storing and restoring it."""
    spec = RunSpec(
        image=ImageSpec(base="python:3.12", apt="git", pip=["wandb"], commands=["true"], env={"A": 1}),
        volumes=[VolumeSpec(), VolumeSpec(name="models", mount_path="/root/models", read_only=True, version=2)],
        mounts=[MountSpec(exclude="*.ckpt"), MountSpec(local_path=tmp_path, remote_path="/root/mine", include=["x"])],
        gpu=["H100:8", "A100-80GB:8"],
        nodes=2,
        rdma=True,
        ray=RaySpec(port=6380, num_cpus=2, env={"X": "1"}, on_worker_loss="wait"),
        timeout="24h",
        retries=1,
        should_retry=[137],
        secrets=["WANDB_API_KEY", SecretSpec("huggingface", keys=["HF_TOKEN"])],
        env={"N": 3},
        cpu=0.5,
        memory=2048,
        region="us-east",
        cloud="aws",
        workdir="skyrl",
        app_name="mine",
        name="first",
        tags=["a", "b"],
        checkout=checkout,
        grace=30,
        start_deadline="30m",
        resume="auto",
        budget=300,
        rate=31.6,
        stall="20m",
        lease="20m",
    )

    assert decode_spec(encode_spec(spec, checkout=None)) == spec
    changed = {item.name for item in attrs.fields(RunSpec) if getattr(spec, item.name) != getattr(RunSpec(), item.name)}
    assert changed == {item.name for item in attrs.fields(RunSpec)}


def test_absent_gpu_and_ray_are_restored() -> None:
    """None is a value of its own for gpu and ray, and is not replaced by the default."""
    spec = decode_spec(encode_spec(RunSpec(gpu=None, ray=None), checkout=None))

    assert (spec.gpu, spec.ray) == (None, None)
