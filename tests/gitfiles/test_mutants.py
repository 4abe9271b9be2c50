"""Faults planted in a copy of the package are found by the comparison with git, every one of them.

``python -m tests.gitfiles.test_mutants`` prints the list with the case that finds each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gitfiles.mutants import MUTANTS, Mutant

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CASES = "4000"


def found(mutant: Mutant, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the comparison says of a copy of the package with the fault in it."""
    import skyrl_modal

    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(skyrl_modal.__file__).parent, folder / "skyrl_modal", ignore=skip)
    shutil.copytree(HERE, folder / "tests" / "mount", ignore=skip)
    (folder / "tests" / "__init__.py").touch()
    module = folder / "skyrl_modal" / "mount" / f"{mutant.module}.py"
    text = module.read_text()
    assert text.count(mutant.before) == 1, f"{mutant.name}: its text stands {text.count(mutant.before)} times"
    module.write_text(text.replace(mutant.before, mutant.after))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tests.gitfiles.agreement", CASES]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="ascii",
        errors="backslashreplace",
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_found(mutant: Mutant, templates: object, tmp_path: Path) -> None:
    """The comparison ends with a disagreement on a package with the fault."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        done = found(mutant, Path(name))
    assert "disagrees with git" in done.stdout, f"survived: {done.stdout}{done.stderr}"


def _told(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        done = found(mutant, Path(place))
    lines = (done.stdout or done.stderr).strip().splitlines() or ["nothing"]
    said = lines[0] if "disagrees" in lines[0] else lines[-1]
    return f"{'dies' if 'disagrees' in said else 'SURVIVES'}  {mutant.name}: {said}"


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(_told, MUTANTS):
            print(line, flush=True)
