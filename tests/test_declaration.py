"""Tests of the declared classes as classes of attrs, by what their users and attrs do with them."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import attrs
import pytest

from skyrl_modal import Launcher, MountSpec, SpecError, VolumeSpec
from skyrl_modal.spec.gpu import GpuRequest

LAUNCHER = Launcher(backend="local", mounts=[], ray=None, timeout="90m")


@attrs.frozen(kw_only=True)
class DerivedLauncher(Launcher):
    """A launcher with a field of its own."""

    rate: float = attrs.field(default=1.0, validator=attrs.validators.instance_of(float))


def test_functions_of_attrs_accept_declared_classes() -> None:
    """``attrs.evolve``, ``fields``, ``asdict`` and ``validate`` work as with a class of attrs."""
    changed = attrs.evolve(LAUNCHER, gpu="A100:4")
    names = [item.name for item in attrs.fields(Launcher)]

    assert attrs.has(Launcher)
    assert changed != LAUNCHER == attrs.evolve(changed, gpu=LAUNCHER.gpu)
    assert (names[0], names[-1]) == ("image", "backend")
    assert attrs.fields(Launcher).image.inherited
    assert not attrs.fields(Launcher).backend.inherited
    assert attrs.asdict(VolumeSpec())["mount_path"] == "/root/data"
    assert attrs.validate(LAUNCHER) is None


def test_field_types_can_be_resolved() -> None:
    """``attrs.resolve_types`` replaces the texts of annotations by types."""
    attrs.resolve_types(VolumeSpec)

    assert attrs.fields(VolumeSpec).name.type is str


def test_declared_instances_cannot_be_changed() -> None:
    """An assignment raises the error of attrs, also for a class that ``attrs.define`` derives."""

    @attrs.define(kw_only=True)
    class Variant(Launcher):
        rate: float = 1.0

    for instance in (LAUNCHER, Variant(backend="local", ray=None)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            instance.gpu = "T4"  # type: ignore[misc]  # what is tested
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            del instance.gpu


def test_attrs_derives_classes() -> None:
    """A class that attrs derives has the inherited fields, with their converters and validators, and its own."""
    derived = DerivedLauncher(backend="local", ray=None, timeout="90m", rate=2.0)

    assert (derived.timeout, derived.rate) == (5400.0, 2.0)
    assert attrs.evolve(derived, rate=3.0).timeout == 5400.0
    assert list(inspect.signature(DerivedLauncher).parameters)[-1] == "rate"
    with pytest.raises(SpecError):
        DerivedLauncher(nodes=0)
    with pytest.raises(TypeError):
        DerivedLauncher(rate="fast")


def test_subclass_without_decorator() -> None:
    """An ordinary subclass has the fields of its base class, and ``attrs.evolve`` returns an instance of it."""

    class Variant(Launcher):
        def command(self) -> str:
            return "true"

    changed = attrs.evolve(Variant(backend="local", ray=None), gpu=None)

    assert (type(changed), changed.gpu, changed.command()) == (Variant, None, "true")
    assert attrs.fields(Variant) == attrs.fields(Launcher)


@pytest.mark.parametrize("convert", [lambda value: pickle.loads(pickle.dumps(value)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("instance", [LAUNCHER, MountSpec(exclude="*.ckpt"), GpuRequest("L4", 2)], ids=repr)
def test_declared_instances_are_copied(instance: Any, convert: Any) -> None:
    """Copies, also by pickle, are equal to the original."""
    assert convert(instance) == instance


def test_values_are_compared_by_class() -> None:
    """Instances are equal, and have the same hash, if class and values are equal."""
    assert GpuRequest("L4") == GpuRequest("L4", 1)
    assert hash(GpuRequest("L4")) == hash(GpuRequest("L4", 1))
    assert GpuRequest("L4") != GpuRequest("T4")
    assert GpuRequest("L4") != ("L4", 1)
    assert repr(GpuRequest("L4", 2)) == "GpuRequest(name='L4', count=2)"


def test_signature_is_that_of_attrs() -> None:
    """``help`` and editors show the fields, their types and their defaults."""
    parameters = inspect.signature(MountSpec).parameters

    assert list(parameters) == ["local_path", "remote_path", "exclude", "include", "skip_caches"]
    assert parameters["remote_path"].default == "/root/SkyRL"
    assert parameters["remote_path"].kind is inspect.Parameter.KEYWORD_ONLY


def test_signature_has_computed_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """``help`` shows the defaults that are computed, also those of the environment."""
    monkeypatch.setenv("MODAL_GPU", "T4")
    text = str(inspect.signature(Launcher))

    for part in ("= 'T4'", "ImageSpec()", "[VolumeSpec()]", "= 3600.0", "= {}"):
        assert part in text
    assert "NOTHING" not in text


@pytest.mark.parametrize(
    ("args", "values", "text"),
    [
        ((), {}, "requires the argument 'name'"),
        (("L4", 1, 2), {}, "takes 2 positional arguments, and 3"),
        (("L4",), {"name": "T4"}, "two values for the argument 'name'"),
        (("L4",), {"number": 1}, "has no argument 'number'"),
    ],
)
def test_wrong_arguments_are_explained(args: tuple[Any, ...], values: dict[str, Any], text: str) -> None:
    """A call with missing, unknown or repeated arguments raises TypeError with the class and the argument."""
    with pytest.raises(TypeError, match=rf"GpuRequest\(\) .*{text}"):
        GpuRequest(*args, **values)


def test_attrs_is_not_imported_for_declarations() -> None:
    """A script that declares a launcher, and plans a run, does not import attrs, which takes time."""
    code = (
        "import sys; from skyrl_modal import Launcher; launcher = Launcher(backend='local', mounts=[], ray=None);"
        "launcher.plan('true'); print({'attr', 'inspect', 'dataclasses'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
