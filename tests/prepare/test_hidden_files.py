"""Volumes at paths of mounted files."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal import Launcher, SpecError, VolumeSpec


@pytest.mark.parametrize("backend", ["local", "modal"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/root/SkyRL/train.py", "/root/SkyRL/train.py is a mounted file"),
        ("/root/SkyRL/train.py/x", "/root/SkyRL/train.py is a mounted file"),
        ("/root/SkyRL/link", "/root/SkyRL/link is a mounted file"),
        ("/root/SkyRL/skyrl", "would hide 1 mounted files, such as /root/SkyRL/skyrl/__init__.py"),
        ("/root/SkyRL/skyrl-gym", "would hide 1 mounted files"),
        ("/root//SkyRL/skyrl-gym/skyrl_gym/", "would hide 1 mounted files"),
    ],
)
def test_hidden_file_is_an_error(checkout: Path, backend: str, path: str, message: str) -> None:
    """A volume at a mounted file or folder is an error before anything starts, on each backend."""
    (checkout / "link").symlink_to("skyrl")
    launcher = Launcher(backend=backend, checkout=checkout, volumes=[VolumeSpec(mount_path=path)])

    with pytest.raises(SpecError, match=message) as caught:
        launcher.plan("true")

    assert caught.value.field == "mount_path"


@pytest.mark.parametrize("path", ["/root/SkyRL/outputs", "/root/SkyRL/skyrl/ckpts", "/root/SkyRL/train"])
def test_new_folder_in_a_mount_is_possible(checkout: Path, path: str) -> None:
    """A volume may be in the checkout if nothing is there."""
    Launcher(backend="local", checkout=checkout, volumes=[VolumeSpec(mount_path=path)]).plan("true")
