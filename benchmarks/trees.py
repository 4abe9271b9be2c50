"""Checkouts for the benchmarks, generated with the same content each time: SkyRL's number of files, sizes and history.

The files are committed in some hundred commits by ``git fast-import``. Their times are in the past, and the index is
up to date, as in a checkout that has been used for a while.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Names of files that SkyRL's .gitignore excludes, with the usual ones of Python and node.
RULES = """\
__pycache__/
*.py[cod]
*$py.class
/wandb/
**/*.egg-info/
/outputs/
/data/lcb
docs/public/api-ref/
.doctrees/
.cache/
.pytest_cache/
/skyrl-gym/.env
/skyrl-gym/.venv
/skyrl-gym/build
/skyrl-gym/dist
*.log
nohup.out
tensorboard_log/
*.db
*.so
.Python
build/
develop-eggs/
dist/
downloads/
eggs/
.eggs/
lib/
!docs/lib/
lib64/
parts/
sdist/
var/
wheels/
share/python-wheels/
.installed.cfg
*.egg
MANIFEST
*.manifest
*.spec
pip-log.txt
htmlcov/
.tox/
.nox/
.coverage
.coverage.*
coverage.xml
*.cover
*.py,cover
.hypothesis/
.ipynb_checkpoints
.env
.venv
env/
venv/
ENV/
env.bak/
site/
.idea/
.vscode/
.DS_Store
Thumbs.db
tinker.db
tx/tinker/alembic/__pycache__/
*.db-journal
*.db-wal
node_modules/
"""
TERMS = [
    "self", "return", "def", "import", "from", "class", "None", "True", "False", "loss", "reward", "policy", "actor",
    "critic", "batch", "tensor", "rollout", "trainer", "worker", "config", "tokens", "kl", "if",
]  # fmt: skip
PYPROJECT = '[project]\nname = "skyrl"\nversion = "0"\n'
#: 2026-01-01, the time of the last commit and of the files.
NEWEST = 1_767_225_600


def skyrl_tree(root: Path, files: int = 1061, commits: int = 400) -> Path:
    """Create a checkout with the number of files, the sizes and the folders of SkyRL, and with history."""
    draw = random.Random("skyrl")
    sizes = [min(3_000_000, int(math.exp(draw.gauss(8.3, 1.7)))) for _ in range(files - 3)]
    names = [_skyrl_path(number, draw) for number in range(len(sizes))]
    return _create(root, dict(zip(names, sizes, strict=True)), commits, draw)


def wide_tree(root: Path, files: int, commits: int = 20) -> Path:
    """Create a checkout with many small files, ten in each folder, and with history."""
    draw = random.Random("wide")
    names = [f"skyrl/d{number // 200}/e{number // 10}/file{number}.py" for number in range(files - 3)]
    return _create(root, {name: draw.randrange(200, 2_000) for name in names}, commits, draw)


def add_ignored(root: Path, files: int, folders: tuple[str, ...] = (".venv", "node_modules")) -> Path:
    """Add files in folders that .gitignore excludes."""
    draw = random.Random("ignored")
    for name in folders:
        for number in range(files // len(folders)):
            path = root / name / f"d{number // 1000}" / f"e{number // 50}" / f"file{number}.js"
            if number % 50 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(draw.randbytes(draw.randrange(1_000)))
    return root


def refresh_index(root: Path) -> None:
    """Update the times in git's index, so that git need not read the files again."""
    _git(root, "update-index", "-q", "--refresh")


def make_index_stale(root: Path) -> None:
    """Change the times that git's index has of all files, as copying or restoring a checkout does."""
    for path in _committed(root):
        os.utime(root / path, (NEWEST + 60, NEWEST + 60))


def copy_files(source: Path, target: Path) -> None:
    """Copy a checkout with ``cp -a``, without its repository."""
    target.mkdir()
    entries = [entry.path for entry in os.scandir(source) if entry.name != ".git"]
    subprocess.run(["cp", "-a", "-t", target, *entries], check=True)


def _skyrl_path(number: int, draw: random.Random) -> str:
    top = ["skyrl", "skyrl-gym", "examples", "tests", "docs", "skyrl-agent", "skyrl-tx"][number // 25 % 7]
    folders = [f"package{number // 175}", f"part{number // 7 % 4}", f"more{number % 2}"][: draw.randrange(1, 4)]
    return "/".join([top, *folders, f"module{number}.{draw.choice(['py', 'py', 'py', 'md', 'sh', 'yaml'])}"])


def _create(root: Path, sizes: dict[str, int], commits: int, draw: random.Random) -> Path:
    """Create a repository and check it out. Each commit adds files; half of the commits also change some."""
    root.mkdir(parents=True)
    _git(root, "init", "-q", "-b", "main")
    terms = [draw.choice(TERMS) + draw.choice([" ", " ", " ", "_", "(", ")\n", "\n    "]) for _ in range(50_000)]
    pool = "".join(terms).encode()
    process = subprocess.Popen(["git", "fast-import", "--quiet"], cwd=root, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as stream:
        _write_history(stream, sizes, commits, pool, draw)
    if process.wait():
        raise SystemExit("git fast-import failed")
    _git(root, "reset", "-q", "--hard", "main")
    for path in _committed(root):
        os.utime(root / path, (NEWEST, NEWEST))
    refresh_index(root)
    return root


def _write_history(stream: IO[bytes], sizes: dict[str, int], commits: int, pool: bytes, draw: random.Random) -> None:
    fixed = {".gitignore": RULES, "pyproject.toml": PYPROJECT, "skyrl-gym/pyproject.toml": PYPROJECT}
    names = list(sizes)
    each = math.ceil(len(names) / commits)
    for number in range(commits):
        added = names[number * each : (number + 1) * each]
        changed = draw.sample(names[: number * each], min(3, number * each)) if number % 2 else []
        when = NEWEST - 3600 * (commits - number)
        text = f"Commit {number}".encode()
        stream.write(b"commit refs/heads/main\ncommitter B <b@example.com> %d +0000\n" % when)
        stream.write(b"data %d\n%s\n" % (len(text), text))
        contents = {name: text.encode() for name, text in fixed.items()} if number == 0 else {}
        contents |= {name: _content(pool, sizes[name], draw) for name in [*added, *changed]}
        for name, data in contents.items():
            mode = b"100755" if name.endswith(".sh") else b"100644"
            stream.write(b"M %s inline %s\ndata %d\n%s\n" % (mode, name.encode(), len(data), data))


def _content(pool: bytes, size: int, draw: random.Random) -> bytes:
    """Return text of a size, which can be compressed about as well as source code."""
    parts: list[bytes] = []
    left = size
    while left > 0:
        start = draw.randrange(len(pool) - 300)
        part = pool[start : start + min(left, draw.randrange(20, 300))]
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _committed(root: Path) -> Iterator[str]:
    output = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    return (os.fsdecode(name) for name in output.split(b"\0") if name)


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)
