"""Sessions for everything that is checked: ``nox`` runs the default ones, ``nox -s NAME`` runs one.

Each session has a virtual environment of its own. Arguments after ``--`` are passed to the session's tool.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted({"3.11", "3.12", "3.13", CURRENT}, key=lambda name: int(name.split(".")[1]))

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "typing", "docs", f"tests-{CURRENT}"]
nox.options.error_on_missing_interpreters = False
#: Files that the tests need, without the package itself.
TEST_INPUTS = [
    ".github",
    ".pre-commit-config.yaml",
    "benchmarks",
    "docs",
    "examples",
    "tests",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "noxfile.py",
    "pyproject.toml",
]
#: What SkyRL's trainer imports, without its engines. They are installed for the session ``skyrl_rollouts``.
SKYRL_PACKAGES = [
    *("torch==2.13.0", "ray[default]", "transformers>=5.6.1,<=5.8.0", "peft==0.18.1", "tensordict", "torchdata"),
    *("datasets", "jaxtyping", "loguru", "omegaconf", "tqdm", "aiohttp", "pandas", "func-timeout", "cloudpathlib"),
    *("orjson", "pybase64", "zstandard", "fastapi", "uvicorn", "httpx"),
]
#: Arguments of pytest in CI. Tests wait for processes more than half of the time, so there are more workers than CPUs.
#: Their durations differ by a factor of a thousand: an idle worker takes tests over.
PYTEST_ARGUMENTS = ["-n", "6", "--dist", "worksteal", "--durations", "10"]
#: Which tests the sessions run; tests with the mark ``live`` need an account.
NOT_SLOW = ["-m", "not live and not slow"]
SLOW = ["-m", "slow and not live"]
#: Tests whose outcome can depend on Modal's client and on how its servers behave.
MODAL_TESTS = ["tests/backends/modal", "tests/contract", "-k", "not local", "-m", "not live and not slow and not ray"]


def oldest_modal_client() -> str:
    """Return the requirement of the oldest version of modal that pyproject.toml permits."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [modal] = [text for text in dependencies if text.startswith("modal>=")]
    return modal.partition(",")[0].replace(">=", "==")


def install(session: nox.Session, *packages: str, groups: tuple[str, ...] = ()) -> None:
    """Install packages and dependency groups with pip."""
    # Older versions of pip do not support dependency groups.
    session.install("--quiet", "--upgrade", "pip>=25.1")
    arguments = list(packages)
    for group in groups:
        arguments += ["--group", group]
    session.install("--quiet", *arguments)


def build_wheel(session: nox.Session) -> Path:
    """Build the package's wheel and return its path."""
    folder = Path(session.virtualenv.location) / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    return wheel


def copy_without_package(session: nox.Session) -> Path:
    """Copy the repository without the package, so that ``import skyrl_modal`` finds the installed wheel."""
    folder = Path(session.virtualenv.location) / "work"
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "_build", ".hypothesis")
    for name in TEST_INPUTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignore)
        elif source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    # The tests mount folders of the examples, which would be ignored in .nox/ of this repository.
    session.run("git", "init", "--quiet", str(folder), external=True)
    return folder


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, import contracts and the language of the texts."""
    install(session, groups=("lint",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")
    session.run("python", "-m", "tests.support.wordcheck")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the package and of code that uses it."""
    install(session, "-e", ".[ui]", groups=("typing",))
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    # conf.py imports all modules, and those of the web page need the extra.
    install(session, "-e", ".[ui]", groups=("docs",))
    out = ROOT / "docs" / "_build" / "html"
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", "docs", str(out))
    session.run("python", "-m", "tests.docs.built_pages", str(out))
    session.log(f"open {out / 'index.html'}")


def run_tests(session: nox.Session, arguments: list[str], *packages: str) -> None:
    """Run pytest against the built wheel, with further packages or versions of them."""
    wheel = build_wheel(session)
    install(session, f"{wheel}[local,ui]", *packages, groups=("test",))
    # A reused environment has the same version already, from an older wheel.
    install(session, "--force-reinstall", "--no-deps", str(wheel))
    session.chdir(copy_without_package(session))
    check = "import skyrl_modal; assert 'site-packages' in skyrl_modal.__file__, skyrl_modal.__file__"
    session.run("python", "-c", check, silent=True)
    session.run("pytest", *arguments)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, except for slow ones, on each Python that is installed."""
    run_tests(session, session.posargs or [*PYTEST_ARGUMENTS, *NOT_SLOW])


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests, such as planted faults, and every command in broken environments."""
    # With W&B, which is too large for the other sessions, the trainings that are killed log to it.
    run_tests(session, session.posargs or [*PYTEST_ARGUMENTS, *SLOW], "wandb")


@nox.session
@nox.parametrize("client", ["oldest", "newest"])
def modal_client(session: nox.Session, client: str) -> None:
    """Run the tests of the Modal backend with the oldest or the newest client that pyproject.toml permits."""
    version = oldest_modal_client() if client == "oldest" else "modal"
    upgrade = ["--upgrade-strategy", "only-if-needed"] if client == "oldest" else ["--upgrade"]
    default = [*PYTEST_ARGUMENTS, "tests/support/loopback", *MODAL_TESTS]
    run_tests(session, session.posargs or default, version, *upgrade)


@nox.session
def modes(session: nox.Session) -> None:
    """Run the Modal tests in each mode of the loopback, or in the named ones: ``-- overlap home_ray``."""
    install(session, "-e", ".[local,ui]", groups=("test",))
    code = "from tests.support.loopback.modes import SUITE_MODES; print(*SUITE_MODES)"
    names = session.posargs or str(session.run("python", "-c", code, silent=True)).split()
    failed = []
    for name in names:
        arguments = ["--loopback-mode", name, *PYTEST_ARGUMENTS, *MODAL_TESTS]
        try:
            session.run("python", "-m", "pytest", *arguments)
        except nox.command.CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"tests failed in the modes {', '.join(failed)}")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage of the tests, with the processes that they start."""
    install(session, "-e", ".[local,ui]", groups=("test", "coverage"))
    session.run("coverage", "erase")
    arguments = session.posargs or PYTEST_ARGUMENTS
    session.run("coverage", "run", "-m", "pytest", *arguments, success_codes=[0, 1])
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Compare the selection of files in 20,000 new random repositories with git's answer."""
    install(session, "-e", ".", groups=("test",))
    session.env.update({"SKYRL_MODAL_CASES": "20000", "SKYRL_MODAL_SEED": "random"})
    session.run("pytest", "tests/gitfiles/test_agreement.py", *(session.posargs or ["-n", "2"]))


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault campaign: runs with one fault each. Options: ``-- --seed 1 --only cancel``."""
    install(session, "-e", ".[local]", groups=("test",))
    session.run("python", "-m", "tests.support.faults.campaign", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill each process of a local run in each phase. Options: ``-- --no-ray --nodes 1 --times 1``."""
    install(session, "-e", ".[local]", groups=("test",))
    session.run("python", "-m", "tests.support.kill_table", *session.posargs)


@nox.session
def attack(session: nox.Session) -> None:
    """Try all attacks of tests/attacks. Options: ``-- --only NAME``, or ``-- --write`` to update the table."""
    install(session, "-e", ".[local,ui]", groups=("test",))
    session.run("python", "-m", "tests.attacks.campaign", *session.posargs)


@nox.session
def skyrl(session: nox.Session) -> None:
    """Run the hook with SkyRL's real tracker, from its package or from a checkout: ``-- /path/to/SkyRL``.

    About 500 MB of packages are installed by uv. torch is the version of which pip finds a wheel for the CPU.
    """
    install(session, "-e", ".[local]", groups=("test",))
    folder = Path(session.virtualenv.location) / "skyrl"
    code = "import sys; sys.path.insert(0, 'examples'); import quickstart; print(quickstart.published_checkout())"
    sources = session.posargs[0] if session.posargs else str(session.run("python", "-c", code, silent=True)).split()[-1]
    # uv does not use pip's configuration, which may name a wheel of torch for the CPU.
    wheels = folder / "wheels"
    session.run("python", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), "torch==2.13.0")
    env = {
        "SKYRL_SOURCES": str(Path(sources).resolve()),
        "UV_FIND_LINKS": str(wheels),
        "UV_CACHE_DIR": str(folder / "uv-cache"),
    }
    session.run("pytest", "tests/skyrl/real_tracking.py", "-x", env=env)


@nox.session
def pictures(session: nox.Session) -> None:
    """Make the pictures of the documentation again, with Debian's Chromium: ``-- terminals notebook ui pages``."""
    # The quickstart's requirements, and the Ray that its checkout pins.
    install(session, "-e", ".[local,ui]", "numpy", "loguru", "omegaconf", "ray==2.57.0", groups=("pictures",))
    session.run("python", "-m", "tests.docs.pictures", *session.posargs)


@nox.session
def skyrl_rollouts(session: nox.Session) -> None:
    """Run the hook with SkyRL's real trainer and generator on the CPU: ``-- /path/to/SkyRL``, else from its package."""
    install(session, "-e", ".[local]", groups=("test",))
    code = "import sys; sys.path.insert(0, 'examples'); import quickstart; print(quickstart.published_checkout())"
    sources = session.posargs[0] if session.posargs else str(session.run("python", "-c", code, silent=True)).split()[-1]
    folder = Path(session.virtualenv.location) / "packages"
    session.run("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", *SKYRL_PACKAGES, external=True)
    env = {"SKYRL_SOURCES": str(Path(sources).resolve()), "SKYRL_PYTHON": python}
    session.run("pytest", "tests/skyrl/real_rollouts.py", "-s", env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks and write docs/benchmarks.md, or run some: ``-- launch --compare OLD.json``."""
    install(session, "-e", ".[local,ui]", groups=("bench",))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Look for leaks in 500 short runs, an hour of output, and 1,000 runs in the index: ``-- --minutes 5``."""
    install(session, "-e", ".[local]")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)
