"""Everything that is checked, each in an environment of its own: ``nox`` for all of it, ``nox -s tests`` for one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted({"3.11", "3.12", "3.13", CURRENT}, key=lambda name: int(name.split(".")[1]))

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "typing", "docs", f"tests-{CURRENT}"]
nox.options.error_on_missing_interpreters = False
#: What the tests read beside the package: everything in the repository but the package itself.
BESIDE = ["benchmarks", "docs", "examples", "tests", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"]


def install(session: nox.Session, *what: str, groups: tuple[str, ...] = ()) -> None:
    """Install with pip. An environment's own pip may be too old to know dependency groups."""
    session.install("--quiet", "--upgrade", "pip>=25.1")
    arguments = list(what)
    for group in groups:
        arguments += ["--group", group]
    session.install("--quiet", *arguments)


def built_wheel(session: nox.Session) -> Path:
    """Build the package's wheel; gives its path."""
    folder = Path(session.virtualenv.location) / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    return wheel


def beside_no_package(session: nox.Session) -> Path:
    """A copy of the repository without the package in it, so that ``import skyrl_modal`` finds the installed one."""
    folder = Path(session.virtualenv.location) / "work"
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "_build", ".hypothesis")
    for name in BESIDE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignore)
        elif source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    # A repository of its own: .nox/ is ignored in ours, and the tests mount folders of the examples.
    session.run("git", "init", "--quiet", str(folder), external=True)
    return folder


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and who may import whom."""
    install(session, groups=("lint",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")


@nox.session
def typing(session: nox.Session) -> None:
    """Types of the package, and of what its users write."""
    install(session, "-e", ".", groups=("typing",))
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; a warning is an error."""
    install(session, "-e", ".", groups=("docs",))
    out = ROOT / "docs" / "_build" / "html"
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", "docs", str(out))
    session.log(f"open {out / 'index.html'}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests against the built wheel, on each Python that is found; arguments after ``--`` go to pytest."""
    wheel = built_wheel(session)
    install(session, f"{wheel}[local]", groups=("test",))
    # An environment that is used again has this version already, from an older wheel.
    install(session, "--force-reinstall", "--no-deps", str(wheel))
    session.chdir(beside_no_package(session))
    where = "import skyrl_modal; assert 'site-packages' in skyrl_modal.__file__, skyrl_modal.__file__"
    session.run("python", "-c", where, silent=True)
    # The tests' times differ by a factor of a thousand: a worker that is done takes over from the other one.
    session.run("pytest", *(session.posargs or ["-n", "2", "--dist", "worksteal", "--durations", "10"]))


@nox.session
def fuzz(session: nox.Session) -> None:
    """20,000 other repositories each time, what is selected beside git's own answer."""
    install(session, "-e", ".", groups=("test",))
    session.env.update({"SKYRL_MODAL_CASES": "20000", "SKYRL_MODAL_SEED": "random"})
    session.run("pytest", "tests/gitfiles/test_agreement.py", *(session.posargs or ["-n", "2"]))


@nox.session
def faults(session: nox.Session) -> None:
    """232 runs with one fault each; after ``--`` the campaign's options: ``-- --seed 1 --only cancel``."""
    install(session, "-e", ".[local]", groups=("test",))
    session.run("python", "-m", "tests.support.faults.campaign", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks beside what they compete with; after ``--`` the name of one, and its options: ``-- local -h``."""
    install(session, "-e", ".[local]", groups=("bench",))
    names, options = session.posargs[:1], session.posargs[1:]
    for name in names or sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")):
        session.run("python", f"benchmarks/{name}.py", *options)
