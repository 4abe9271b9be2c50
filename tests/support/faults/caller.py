"""A process that calls ``Launcher.run``, to be killed: ``python caller.py FACTS RESULT``, both paths of JSON files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from skyrl_modal import Launcher, RaySpec, VolumeSpec


def main(facts_path: str, result_path: str) -> None:
    facts = json.loads(Path(facts_path).read_text(encoding="utf-8"))
    launcher = Launcher(
        backend=facts["backend"],
        checkout=facts["checkout"],
        volumes=[VolumeSpec(name=facts["volume"])],
        ray=RaySpec(num_cpus=1, object_store_memory=100_000_000) if facts["ray"] else None,
        **{"gpu": None, **facts["fields"]},
    )
    result = launcher.run(facts["command"])
    told = {"state": str(result.state), "returncode": result.returncode, "detail": result.detail}
    Path(result_path).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
