"""Tests of the warning about paths that are on a volume with one value of HOME only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.findings import Severity


def findings(checkout: Path, command: str, **fields: Any) -> list[str]:
    """Return the messages and remedies of the warnings about paths below HOME."""
    plan = Launcher(**{"backend": "modal", "checkout": checkout, **fields}).plan(command)
    found = [finding for finding in plan.findings if finding.code == "home-path"]
    assert all(finding.severity is Severity.WARNING for finding in found)
    return [str(finding) for finding in found]


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("python train.py data=$HOME/data/gsm8k/train.parquet", "$HOME/data/gsm8k/train.parquet"),
        ("python train.py data='${HOME}/data/x'", "${HOME}/data/x"),
        ("ls ~/data/x", "~/data/x"),
        ('DATA_DIR="$HOME/data" bash x.sh', "$HOME/data"),
        ("ls $HOME/../root/data/x", "$HOME/../root/data/x"),
        ("ls $HOME/ckpts", ""),
        ("ls /root/data $SKYRL_DATA/x", ""),
        ("ls $HOMES/data a~/data $HOME/datasets", ""),
    ],
)
def test_path_below_home(checkout: Path, command: str, path: str) -> None:
    """A path that is on the volume with HOME=/root, and not with /home/ray, is a warning with the path to write."""
    found = findings(checkout, command)

    assert len(found) == bool(path)
    if path:
        assert f"uses {path}, which is on a volume only if HOME is /root" in found[0]
        assert "Write /root/data" in found[0]


def test_volume_below_the_other_home(checkout: Path) -> None:
    """A volume below /home/ray is reported too, and one that both homes lead to is not."""
    volume = VolumeSpec(mount_path="/home/ray/ckpts")
    [found] = findings(checkout, "python train.py ckpt_path=$HOME/ckpts", volumes=[volume])
    assert "only if HOME is /home/ray" in found

    both = [volume, VolumeSpec(name="other", mount_path="/root/ckpts")]
    assert not findings(checkout, "python train.py ckpt_path=$HOME/ckpts", volumes=both)


def test_known_home(checkout: Path) -> None:
    """HOME is known if the caller declares it, and on this machine."""
    command = "ls $HOME/data/x"
    assert not findings(checkout, command, env={"HOME": "/root"})
    assert not findings(checkout, command, backend="local", ray=None)


def test_path_in_a_script(checkout: Path) -> None:
    """A script that the command names is searched too."""
    (checkout / "run.sh").write_text(
        ': "${DATA_DIR:="$HOME/data/gsm8k"}"\npython x.py $DATA_DIR $HOME/data/a $HOME/ckpts\n'
    )

    [found] = findings(checkout, "bash run.sh")

    assert "run.sh uses $HOME/data/gsm8k, $HOME/data/a, which" in found
