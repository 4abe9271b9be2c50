"""A ``ray`` program that runs another script on rank 1 of a cluster."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

#: Script for rank 1: the real program, with another version.
OTHER_VERSION = "import ray; ray.__version__ = '2.0.0'\nfrom ray.scripts.scripts import main; sys.exit(main())"


def other_ray(folder: Path, script: str) -> Path:
    """Create a folder for the PATH, with a ``ray`` that runs a script on rank 1 and the real ray on other ranks."""
    real = Path(sys.executable).with_name("ray")
    folder.mkdir()
    text = (
        f'#!{sys.executable}\nimport os, sys\nif os.environ["NODE_RANK"] == "1":\n{textwrap.indent(script, "    ")}\n'
    )
    (folder / "ray").write_text(f"{text}os.execv({str(real)!r}, sys.argv)\n")
    (folder / "ray").chmod(0o755)
    return folder
