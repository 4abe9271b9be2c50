"""Files that block, never end or are not what their reader expects."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

KINDS = ["fifo", "endless device", "folder", "socket", "10 GB", "link to itself", "no permission"]


def place(path: Path, kind: str) -> None:
    """Replace a path by a special file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        # The path of a socket is limited to about 100 characters.
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    elif kind == "10 GB":
        with path.open("wb") as file:
            file.truncate(10_000_000_000)
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        path.write_text("x\n")
        path.chmod(0)
