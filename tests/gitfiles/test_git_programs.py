"""``Launcher.plan`` executes no program, in whatever place a checkout or the environment names one for git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from skyrl_modal.checkout import inspect_checkout
from skyrl_modal.gitfiles.git_command import find_git
from skyrl_modal.mount import select
from tests.gitfiles.repositories import git
from tests.gitfiles.test_git_safety import ALIASES, HOOKS, PROGRAM_KEYS
from tests.gitfiles.trees import commit, make

# Further keys, of programs that only other commands of git or newer versions execute.
OTHER_KEYS = [
    "credential.https://example.org.helper", "diff.marker.cachetextconv", "diff.guitool", "difftool.marker.path",
    "fsck.skipList", "gc.recentObjectsHook", "guitool.marker.cmd", "hook.marker.command", "imap.tunnel",
    "init.templateDir", "instaweb.httpd", "instaweb.browser", "maintenance.marker.command", "mergetool.marker.path",
    "remote.origin.vcs", "sendemail.headerCmd", "sendemail.sendmailCmd", "sendemail.smtpServer", "sendemail.toCmd",
    "sendemail.ccCmd", "ssh.variant", "trailer.marker.cmd", "trace2.normalTarget", "trace2.eventTarget",
    "browser.marker.path", "man.marker.path", "merge.tool", "uploadpack.packObjectsHook", "core.gitProxy",
    "extensions.partialClone", "lfs.customtransfer.marker.path", "bundle.uri", "web.browser", "core.worktree",
    "core.attributesFile", "core.excludesFile",
]  # fmt: skip
ALL_KEYS = [*dict.fromkeys([*PROGRAM_KEYS, *OTHER_KEYS])]
PROGRAM_VARIABLES = [
    "EDITOR", "GIT_ASKPASS", "GIT_EDITOR", "GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_PROXY_COMMAND",
    "GIT_SEQUENCE_EDITOR", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_MAN_VIEWER", "PAGER", "SSH_ASKPASS", "VISUAL", "BROWSER",
]  # fmt: skip


@pytest.fixture
def program(program: Path) -> Path:
    """A program that creates the marker and copies its input, as a filter does."""
    program.write_text(f"{program.read_text()}cat\n")
    return program


@pytest.fixture
def checkout(tree: Path) -> Path:
    """A repository in which git has to compare a file of every kind of attribute."""
    make(tree, {"skyrl-gym/x.py": "", ".gitattributes": "* diff=marker merge=marker filter=marker\n"})
    git("add", ".", cwd=tree)
    commit(tree)
    for name in ("train.py", "docs/lib/page.tsx"):
        os.utime(tree / name, (1, 1))
    return tree


def plan(root: Path) -> None:
    """Plan a run of the checkout as a user does, and select its files."""
    Launcher(backend="local", checkout=root, workdir="/root/data/x").plan("true")
    select(root)


def config_text(program: Path, keys: list[str]) -> str:
    """Return a configuration file that sets each key to the program."""
    lines = []
    for key in keys:
        section, _, name = key.rpartition(".")
        first, _, middle = section.partition(".")
        header = f'[{first} "{middle}"]' if middle else f"[{first}]"
        lines.append(f"{header}\n\t{name} = {program}\n")
    return "".join(lines)


@pytest.mark.parametrize("key", ALL_KEYS)
def test_no_key_is_executed(checkout: Path, program: Path, marker: Path, key: str) -> None:
    """No key alone causes an execution."""
    with (checkout / ".git" / "config").open("a") as file:
        file.write(config_text(program, [key]))
    plan(checkout)
    assert not marker.exists(), marker.read_text()


SCOPES = ["local", "included", "conditional", "nested include", "worktree", "global", "xdg", "system", "environment"]


@pytest.mark.parametrize("scope", SCOPES)
def test_no_scope_is_executed(
    checkout: Path, program: Path, marker: Path, scope: str, monkeypatch: pytest.MonkeyPatch, no_settings: Path
) -> None:
    """All keys together cause no execution in any file or variable that git reads, while git itself executes them."""
    keys = [key for key in PROGRAM_KEYS if key not in ("core.worktree", "filter.a.b c.clean")]
    text = config_text(program, [*keys, *(f"alias.{name}" for name in ALIASES)])
    config = checkout / ".git" / "config"
    places = {
        "local": config,
        "worktree": checkout / ".git" / "config.worktree",
        "global": no_settings / ".gitconfig",
        "xdg": no_settings / "xdg" / "git" / "config",
        "system": no_settings / "system",
    }
    place = places.get(scope, checkout / "hostile config")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        file.write(text)
    if scope in ("included", "conditional", "nested include"):
        header = '[includeIf "gitdir:**"]' if scope == "conditional" else "[include]"
        target = checkout / "between" if scope == "nested include" else place
        (checkout / "between").write_text(f'[include]\n\tpath = "{place}"\n')
        with config.open("a") as file:
            file.write(f'{header}\n\tpath = "{target}"\n')
    elif scope == "worktree":
        git("config", "extensions.worktreeConfig", "true", cwd=checkout)
    elif scope == "system":
        monkeypatch.delenv("GIT_CONFIG_NOSYSTEM")
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(place))
    elif scope == "environment":
        monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(keys)))
        for number, key in enumerate(keys):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", str(program))
    plan(checkout)
    assert inspect_checkout(checkout).commit is not None
    assert not marker.exists(), marker.read_text()
    subprocess.run(["git", "status"], cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert marker.exists()


ATTRIBUTE_FILES = [".gitattributes", "docs/.gitattributes", ".git/info/attributes", "attributes", "xdg"]


@pytest.mark.parametrize("place", ATTRIBUTE_FILES)
def test_no_attribute_is_executed(checkout: Path, program: Path, marker: Path, place: str, no_settings: Path) -> None:
    """A filter is not executed, in whatever file of attributes it is named."""
    (checkout / ".gitattributes").write_text("")
    path = no_settings / "xdg" / "git" / "attributes" if place == "xdg" else checkout / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("* filter=other diff=other merge=other\n[attr]macro filter=other\n*.py macro\n")
    for key in ("filter.other.clean", "filter.other.smudge", "filter.other.process", "diff.other.textconv"):
        git("config", key, str(program), cwd=checkout)
    if place == "attributes":
        git("config", "core.attributesFile", str(path), cwd=checkout)
    plan(checkout)
    assert not marker.exists(), marker.read_text()
    subprocess.run(["git", "status"], cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert marker.exists()


def test_no_variable_is_executed(
    checkout: Path, program: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable of the environment makes git execute a program, load a repository or write a file."""
    git("update-index", "--split-index", cwd=checkout)
    tools = make(tmp_path / "tools", {f"git-{name}": program.read_text() for name in (*ALIASES, "remote-ext")})
    for path in tools.iterdir():
        path.chmod(0o755)
    for name in PROGRAM_VARIABLES:
        monkeypatch.setenv(name, str(program))
    monkeypatch.setenv("GIT_EXEC_PATH", str(tools))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tools))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor'='{program}' 'filter.marker.clean'='{program}'")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "ext")
    monkeypatch.setenv("GIT_PROTOCOL_FROM_USER", "1")
    for name in ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    for name in ("GIT_TRACE", "GIT_TRACE_SETUP", "GIT_TRACE2", "GIT_TRACE2_EVENT", "GIT_TRACE2_PERF"):
        monkeypatch.setenv(name, str(tmp_path / "trace"))
    plan(checkout)
    assert inspect_checkout(checkout).commit is not None
    assert not marker.exists(), marker.read_text()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("entry", ["", ".", "bin", "{0}/bin", "{0}/skyrl-gym/../bin", "{1}/link", "{0}/nested/bin"])
def test_git_of_the_checkout_is_not_executed(
    checkout: Path, program: Path, marker: Path, tmp_path: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program named git in the checkout is not executed, even if PATH leads there."""
    for folder in (".", "bin", "nested/bin"):
        make(checkout, {f"{folder}/git": program.read_text()})
        (checkout / folder / "git").chmod(0o755)
    git("init", "-q", "nested", cwd=checkout)
    git("config", "include.path", "included", cwd=checkout / "nested")
    (tmp_path / "link").symlink_to(checkout / "bin")
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", entry.format(checkout, tmp_path), prepend=os.pathsep)
    plan(checkout)
    assert find_git(checkout / "nested") == find_git(tmp_path)
    assert not marker.exists(), marker.read_text()
    monkeypatch.setenv("PATH", entry.format(checkout, tmp_path))
    assert find_git(checkout) is None


def test_git_below_the_home_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    """A repository in the home folder itself, as for configuration files, does not exclude the programs below it."""
    home = make(tmp_path / "home", {".git/HEAD": "", "bin/git": program.read_text(), "work/.git/HEAD": ""})
    (home / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert find_git(home / "work") == str(home / "bin" / "git")


def hostile_repository(root: Path, program: Path) -> Path:
    """Create a repository with programs in its configuration and its hooks."""
    make(root, {"a.py": "x\n", ".gitattributes": "* filter=marker\n"})
    git("init", "-q", cwd=root)
    git("add", ".", cwd=root)
    commit(root)
    os.utime(root / "a.py", (1, 1))
    for name in HOOKS:
        make(root, {f".git/hooks/{name}": program.read_text()})
        (root / ".git" / "hooks" / name).chmod(0o755)
    with (root / ".git" / "config").open("a") as file:
        file.write(config_text(program, ["core.fsmonitor", "filter.marker.clean", "filter.marker.process"]))
    return root


@pytest.mark.parametrize("form", ["submodule", "nested clone", ".git file", "commondir", "linked worktree"])
def test_no_other_repository_is_executed(
    checkout: Path, program: Path, marker: Path, tmp_path: Path, form: str
) -> None:
    """The configuration of a repository that a checkout leads to is not executed either."""
    other = hostile_repository(tmp_path / "other", program)
    if form == ".git file":
        (checkout / ".git").rename(tmp_path / "unused")
        make(checkout, {".git": f"gitdir: {other}/.git\n"})
    elif form == "commondir":
        (checkout / ".git" / "commondir").write_text(f"{other}/.git\n")
    elif form == "linked worktree":
        options = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "filter.marker.clean=cat")
        git(*options, "-c", "filter.marker.process=", "worktree", "add", "-q", str(tmp_path / "linked"), cwd=other)
        checkout = make(tmp_path / "linked", {"skyrl-gym/x.py": ""})
        os.utime(checkout / "a.py", (1, 1))
    else:
        other.rename(checkout / "sub")
        if form == "submodule":
            git("-c", "core.fsmonitor=false", "add", "sub", cwd=checkout)
            commit(checkout)
    marker.unlink(missing_ok=True)
    plan(checkout)
    assert not marker.exists(), marker.read_text()


def test_no_promised_object_is_fetched(checkout: Path, program: Path, marker: Path) -> None:
    """An object that a remote has promised is not fetched, by whatever kind of remote."""
    git("sparse-checkout", "set", "--no-cone", "docs", cwd=checkout)
    make(checkout, {"skyrl-gym/x.py": ""})
    for name in (".gitignore", ".gitattributes"):
        object_id = git("ls-files", "-s", name, cwd=checkout).split()[1].decode()
        (checkout / ".git" / "objects" / object_id[:2] / object_id[2:]).unlink()
    keys = ["remote.origin.url", "remote.origin.uploadpack", "remote.origin.vcs", "core.sshCommand"]
    with (checkout / ".git" / "config").open("a") as file:
        file.write(config_text(program, keys))
        file.write('[remote "origin"]\n\tpromisor = true\n\tpartialclonefilter = blob:none\n\turl = ssh://h/x\n')
        file.write("[extensions]\n\tpartialClone = origin\n[protocol]\n\tallow = always\n")
    plan(checkout)
    assert not marker.exists(), marker.read_text()
