"""Call ``Launcher.run`` in a process that can be killed: ``python caller.py PARAMETERS RESULT``, two JSON files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from skyrl_modal import Launcher, RaySpec, VolumeSpec


def main(parameters_path: str, result_path: str) -> None:
    """Run the command that the parameters describe, and write its result."""
    parameters = json.loads(Path(parameters_path).read_text(encoding="utf-8"))
    launcher = Launcher(
        backend=parameters["backend"],
        checkout=parameters["checkout"],
        volumes=[VolumeSpec(name=parameters["volume"])],
        ray=RaySpec(num_cpus=1, object_store_memory=100_000_000) if parameters["ray"] else None,
        **{"gpu": None, **parameters["fields"]},
    )
    result = launcher.run(parameters["command"])
    facts = {"state": result.state, "returncode": result.returncode, "cause": result.cause, "detail": result.detail}
    Path(result_path).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
