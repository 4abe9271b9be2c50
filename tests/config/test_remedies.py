"""Remedies for values of options, variables and files are in the terms of a shell, whichever check refuses them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from skyrl_modal import Launcher, SkyRLModalError, SpecError
from skyrl_modal.cli.launcher_options import make_launcher
from skyrl_modal.config.settings import Setting, all_settings
from skyrl_modal.user_folders import config_folder

#: What only Python has: its constants, the names of classes, and arguments.
PYTHON = re.compile(
    r"\bNone\b|\bTrue\b|\bFalse\b|\w+Spec\b|\bcallable\b|Python|Launcher|\b(?!key_prefix)[a-z_]+=(?!\w*[/;])"
)
SETTINGS = all_settings(Launcher)
#: Values in TOML by the kind of the setting, of which each check refuses at least one.
IN_FILES: Mapping[str, list[str]] = {
    "whole": ["-1", "0", "99999999999999999", '"x"', "true"],
    "number": ["-1", "nan", "inf", '"x"'],
    "duration": ["-1", '"soon"', "true"],
    "choice": ['"x"', "1"],
    "text": ['""', '" a b "', '"a\\nb"', "1"],
    "flag": ["1", '"x"'],
    "path": ["1"],
    "gpus": ["[]", '["A100:0"]', "1"],
    "list": ["1", "[1]", '"a\\u0000b"', '""'],
    "codes": ["0", '"a"', "[]"],
    "variables": [
        "1",
        '{RAY_ADDRESS="1"}',
        '{NUM_GPUS="1"}',
        '{SKYRL_DATA="1"}',
        '{SKYRL_REPO_ROOT="1"}',
        '{"1A"="b"}',
    ],
    "secrets": ['["A=b"]', "[1]", '"x"', '[{name="a b"}]', '[{name="A", source="environment", keys=["b"]}]'],
    "volumes": ['[{name="a b"}]', '[{mount_path="x"}]', "[{version=3}]", "[1]", '[{nam="x"}]'],
    "mounts": ["[{local_path=1}]", '[{remote_path="x"}]', "[{exclude=1}]"],
    "buckets": ['[{name="abc"}]', '[{name="A", mount_path="/m"}]', '[{name="abc", mount_path="/root/data"}]'],
    "url": ["1"],
}
#: Values of options by the kind of the setting.
ON_COMMAND_LINE: Mapping[str, list[Any]] = {
    "whole": [-1],
    "number": [-1.0],
    "duration": ["soon"],
    "choice": ["x"],
    "text": [" a b ", ".."],
    "gpus": ["A100:0"],
    "list": [("a b",)],
    "codes": ["0"],
    "variables": [("RAY_ADDRESS=1",), ("SKYRL_DATA=1",), ("1A=b",)],
    "secrets": [("A=b",), ("RAY_ADDRESS",)],
    "volumes": [("x=y",), ("/root/SkyRL=abc",)],
    "mounts": [("x=y",), ("/root/data/x=/tmp",)],
    "buckets": [("/m=A",), ("/root/SkyRL/x=abc",), ("/m=abc,requester_pays=true",)],
    "flag": [True],
}


@pytest.fixture(autouse=True)
def empty_configuration(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a checkout, with a folder of its own for the user's configuration."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout.parent / "config"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_patterns_of_python() -> None:
    """The pattern of this module finds what it is for."""
    for text in ("or None", "pass SecretSpec", "Pass ray=None", "pass gpu=", "set x=[]", "use read_only=True"):
        assert PYTHON.search(text)
    assert not PYTHON.search("pass secret too, or none; ARN of a role, such as arn:aws:iam::1:role/name")


def error_of(call: Callable[[], object]) -> SkyRLModalError | click.UsageError | None:
    """Return the error that a call raises; None for none."""
    try:
        call()
    except (SkyRLModalError, click.UsageError) as error:
        return error
    return None


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.key)
def test_values_of_files(setting: Setting) -> None:
    """A value of the user's file that is refused has a remedy without Python, and names the file and the key."""
    path = config_folder() / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    table, _, name = setting.key.rpartition(".")
    refused = 0
    for value in IN_FILES[setting.option.kind]:
        path.write_text((f"[{table}]\n" if table else "") + f"{name} = {value}\n")
        error = error_of(Launcher.from_config)
        if isinstance(error, SpecError):
            refused += 1
            assert error.source.startswith(f"{path}: {setting.key}"), value
            assert not PYTHON.search(error.remedy), (value, error.remedy)
    assert refused


@pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS.values() if setting.flag], ids=lambda setting: setting.key
)
def test_values_of_options(setting: Setting) -> None:
    """A value of an option that is refused has a remedy without Python, and the option as it is written."""
    for value in ON_COMMAND_LINE.get(setting.option.kind, []):
        error = error_of(partial(make_launcher, {setting.key.replace(".", "__"): value}))
        if isinstance(error, SpecError):
            assert error.source, value
            assert not PYTHON.search(f"{error.source} {error.remedy}"), (value, str(error))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "--budget -1: pass a number above 0, or none"),
        ({"rdma": True}, "--rdma: RDMA connects nodes; set --nodes to 2 or more, or omit it"),
        ({"env": ("A=1", "RAY_ADDRESS=1")}, "--env RAY_ADDRESS: the run sets it to that of its own Ray. Pass --no-ray"),
        ({"buckets": ("/root/data=abc",)}, "--bucket /root/data: two volumes have this path"),
        ({"tags": ("a b",)}, "--tag 'a b': use 1 to 64 characters"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    """The message begins with the option as it is written."""
    with pytest.raises(SpecError) as caught:
        make_launcher(options)

    assert str(caught.value).startswith(message)


def test_variable_of_a_file() -> None:
    """The error about a variable names its own key, and not its value."""
    path = config_folder() / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('env = { A = "1", RAY_ADDRESS = "hidden" }\n')

    with pytest.raises(SpecError) as caught:
        Launcher.from_config()

    assert str(caught.value).startswith(f"{path}: env.RAY_ADDRESS: ")
    assert "hidden" not in str(caught.value)


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about an environment variable names it. In Python, the remedies have Python's terms."""
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "moda")
    with pytest.raises(SpecError) as caught:
        make_launcher({})
    assert str(caught.value) == "$SKYRL_MODAL_BACKEND=moda: Did you mean modal? Installed backends: modal, local"

    with pytest.raises(SpecError, match=r"In Python, an object .* can be passed too"):
        Launcher()
    with pytest.raises(SpecError, match="pass a number above 0, or None"):
        Launcher(backend="local", budget=-1)
