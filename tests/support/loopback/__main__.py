"""Run a command against the loopback control plane: `python -m tests.support.loopback [--python PYTHON] -- COMMAND`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from . import LoopbackModal


def main() -> int:
    """Run the command line and return the command's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.loopback", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the containers' interpreter")
    parser.add_argument("--path", action="append", default=[], help="a folder to put first on the containers' PATH")
    parser.add_argument("--folder", help="folder that keeps files, volumes and containers after the command")
    parser.add_argument("command", nargs="*", default=["bash"])
    options = parser.parse_args()
    with LoopbackModal(
        options.folder, python=options.python, container_path=options.path, keep=bool(options.folder)
    ) as server:
        code = subprocess.run(options.command, check=False, env={**os.environ, **server.env()}).returncode
        for name in sorted(set(server.unimplemented)):
            print(f"loopback: RPC is not implemented: {name}", file=sys.stderr)
        for error in server.errors:
            print(f"loopback: {error!r}", file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
