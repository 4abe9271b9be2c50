"""Faults planted in a copy of the package are found by the comparison with git.

``python -m tests.gitfiles.test_mutants`` prints the list with the case that finds each fault.
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
CASES = "4000"


def compare_with_git(mutant: Mutant, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the comparison on a copy of the package that contains the fault."""
    import skyrl_modal

    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(skyrl_modal.__file__).parent, folder / "skyrl_modal", ignore=skip)
    shutil.copytree(HERE, folder / "tests" / "gitfiles", ignore=skip)
    for name in ("__init__.py", "support/__init__.py", "support/git_settings.py"):
        (folder / "tests" / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE.parent / name, folder / "tests" / name)
    module = folder / "skyrl_modal" / "gitfiles" / f"{mutant.module}.py"
    text = module.read_text()
    assert text.count(mutant.before) == 1, f"{mutant.name}: the text occurs {text.count(mutant.before)} times"
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
def test_planted_fault_is_found(mutant: Mutant, templates: object, tmp_path: Path) -> None:
    """The comparison of a package with the fault ends with a disagreement."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        done = compare_with_git(mutant, Path(name))
    assert "disagrees with git" in done.stdout, f"survived: {done.stdout}{done.stderr}"


def _report(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        done = compare_with_git(mutant, Path(place))
    lines = (done.stdout or done.stderr).strip().splitlines() or ["no output"]
    line = lines[0] if "disagrees" in lines[0] else lines[-1]
    return f"{'found' if 'disagrees' in line else 'SURVIVES'}  {mutant.name}: {line}"


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(_report, MUTANTS):
            print(line, flush=True)
