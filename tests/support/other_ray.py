"""A ``ray`` on the PATH that does something else on rank 1 of a cluster."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

#: What rank 1 does: the real thing, but of another version.
OTHER_VERSION = "import ray; ray.__version__ = '2.0.0'\nfrom ray.scripts.scripts import main; sys.exit(main())"


def other_ray(folder: Path, script: str) -> Path:
    """Make a folder with a ``ray`` that runs a script on rank 1, and the real one on the others."""
    real = Path(sys.executable).with_name("ray")
    folder.mkdir()
    text = (
        f'#!{sys.executable}\nimport os, sys\nif os.environ["NODE_RANK"] == "1":\n{textwrap.indent(script, "    ")}\n'
    )
    (folder / "ray").write_text(f"{text}os.execv({str(real)!r}, sys.argv)\n")
    (folder / "ray").chmod(0o755)
    return folder
