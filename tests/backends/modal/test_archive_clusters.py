"""Tests of mounted files on the ranks of a cluster on Modal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from skyrl_modal import Launcher, RunState
from skyrl_modal.protocol.state import FailureCause
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]

#: Fails if a file is missing on this rank.
CHECK = "cat /root/SkyRL/train.py; test -x /root/SkyRL/run.sh"


def damage_archives(server: LoopbackModal) -> int:
    """Change the archives that the server has; return their number."""
    archives = [path for path in (server.folder / "files").iterdir() if b"skyrl-modal files" in path.read_bytes()[-40:]]
    for path in archives:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    return len(archives)


def test_each_rank_has_the_files(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """Each rank unpacks the files, and reports it to its own log. Damage fails the run with the cause."""
    (checkout / "run.sh").write_text("#!/bin/sh\n")
    (checkout / "run.sh").chmod(0o755)
    cluster = launcher(nodes=2, gpu="H100:8", ray=None)
    output = io.BytesIO()

    result = cluster.run(CHECK, output=output, quiet=True)

    assert (result.state, output.getvalue()) == (RunState.SUCCEEDED, b"print('training')\n")
    folder = server.volume(cluster.volumes[0].name) / ".skyrl_modal" / "runs" / result.run_id / "logs"
    logs = {path.parent.name: path.read_text() for path in folder.glob("*/supervisor.log")}
    assert len(logs) == 2
    assert all("unpacked" in text for text in logs.values())

    assert damage_archives(server) == 1
    failed = cluster.run(CHECK, output=output, quiet=True)
    assert (failed.state, failed.returncode, failed.cause) == (RunState.FAILED, 125, FailureCause.FILES_NOT_UNPACKED)
