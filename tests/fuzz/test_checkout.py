"""Files of a checkout: git's own, ignore files, pyproject.toml, scripts and .env."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyrl_modal.checkout import inspect_checkout, pinned_ray_version
from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.config import GitConfig, is_true, parse_config_list
from skyrl_modal.gitfiles.config_file import parse_config
from skyrl_modal.gitfiles.ignore_file import parse_ignore_file
from skyrl_modal.gitfiles.index import parse_cat_file, parse_ls_files
from skyrl_modal.gitfiles.index_format import IndexReadError, is_plain, parse_index
from skyrl_modal.gitfiles.secret_patterns import find_secrets
from skyrl_modal.mount import select
from skyrl_modal.prepare.secret_values import read_secret_values
from skyrl_modal.skyrl.scripts import find_ray_calls, scripts_of_command
from tests.conftest import git
from tests.fuzz.inputs import HOSTILE, any_bytes, changed_bytes, fuzz_settings
from tests.support.git_settings import isolated_git_settings

CONFIG = (
    b'[core]\n\tbare = false\n\tignorecase = true\n\texcludesFile = "~/a b" ; text\n[filter "x"]\n\tclean = cat\n'
    b"[extensions]\n\tobjectFormat = sha1\n\tworktreeConfig\n[include]\n\tpath = other\n"
)
IGNORE = b"*.o\n!/keep.o\n[[:alpha:]]x\nbuild/\n**/a/**\n\\#b\\ \n"
PYPROJECT = (
    b'[project]\nname = "x"\ndependencies = ["ray==2.57.0"]\n[project.optional-dependencies]\na = ["ray==1.0"]\n'
)
SCRIPT = b"#!/bin/bash\n# ray start\nray start --head && python x.py; ray stop\n"
ENV = b'A=b\nexport KEY=\'a b\'\nTEXT="${A} c"\n# comment\nKEY2="two\nlines"\n'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with a few files, and no other git settings."""
    folder = tmp_path_factory.mktemp("fuzz")
    root = folder / "r"
    (root / "sub").mkdir(parents=True)
    for name, content in {
        "a.py": b"x\n",
        "sub/b.py": b"y\n",
        ".gitignore": IGNORE,
        "pyproject.toml": PYPROJECT,
    }.items():
        (root / name).write_bytes(content)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / ".git" / "info").mkdir(exist_ok=True)
    with isolated_git_settings(folder):
        yield root


GIT_FILES = [
    *("HEAD", "config", "index", "commondir", "packed-refs", "config.worktree", "info/exclude", "info/attributes"),
    *("refs/heads/main", "refs/heads/master", "objects/info/alternates", "info/sparse-checkout", "shallow"),
]


@fuzz_settings
@given(st.sampled_from(GIT_FILES), st.data())
def test_repository_with_a_damaged_file(repository: Path, name: str, data: st.DataObject) -> None:
    """The selection and the state of a repository are read, with any content of one of git's files."""
    path = repository / ".git" / name
    before = path.read_bytes() if path.exists() else None
    valid = {"config": CONFIG, "config.worktree": CONFIG, "info/exclude": IGNORE}.get(name, before or b"../x\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(any_bytes | changed_bytes(valid)))
    try:
        selection = select(repository)
        assert all(isinstance(warning, str) for warning in selection.warnings)
        assert inspect_checkout(repository).root == repository
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@fuzz_settings
@given(any_bytes | changed_bytes(b"gitdir: ../r/.git\n") | st.just(b"gitdir: a\0b"))
def test_git_file_with_any_content(repository: Path, content: bytes) -> None:
    """A `.git` file with any content leads to a repository or to none."""
    root = repository.with_name("linked")
    root.mkdir(exist_ok=True)
    (root / "a.py").write_bytes(b"")
    (root / ".git").write_bytes(content)
    assert "a.py" in select(root).files
    assert inspect_checkout(root).root == root
    shutil.rmtree(root)


@fuzz_settings
@given(any_bytes | changed_bytes(IGNORE), st.sampled_from([".gitignore", "sub/.gitignore", ".skyrlignore"]))
def test_ignore_file_with_any_content(repository: Path, content: bytes, name: str) -> None:
    """An ignore file with any content is applied, and lines that match nothing are reported."""
    path = repository / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        selection = select(repository)
        assert all(selection.explain(path) for path in selection.files)
        assert selection.warnings is not None
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@fuzz_settings
@given(any_bytes | changed_bytes(CONFIG))
def test_configuration_file_is_parsed_or_refused(content: bytes) -> None:
    """A configuration file is parsed, or raises ValueError; every value can be read as a flag."""
    values = {}
    with contextlib.suppress(ValueError):
        for key, value in parse_config(content):
            values[key] = value
    for key in values:
        assert GitConfig(values).flag(key) in (True, False)
    assert parse_config_list(content) is not None


@fuzz_settings
@given(st.binary(max_size=20))
@example(b"+-5")
@example(b"9" * 5000)
@example("²".encode())
def test_boolean_with_any_content(value: bytes) -> None:
    """A boolean setting with any value is true or false."""
    assert is_true(value) in (True, False)


@fuzz_settings
@given(st.data())
def test_index_is_parsed_or_refused(repository: Path, data: st.DataObject) -> None:
    """An index is parsed, or raises IndexReadError."""
    content = data.draw(any_bytes | changed_bytes((repository / ".git" / "index").read_bytes()))
    with contextlib.suppress(IndexReadError):
        if is_plain(content):
            assert all(entry.path is not None for entry in parse_index(content))


@fuzz_settings
@given(
    any_bytes
    | changed_bytes(b"S 100644 0aff 0\ta/b\0H 100644 0aff 0\tc\0")
    | changed_bytes(b"0aff blob 3\n*.o\n0aff missing\n")
)
def test_output_of_git_is_parsed_or_refused(output: bytes) -> None:
    """The output of git is parsed, or raises IndexReadError."""
    with contextlib.suppress(IndexReadError):
        parse_ls_files(output)
    with contextlib.suppress(IndexReadError):
        parse_cat_file(output)


@fuzz_settings
@given(any_bytes | changed_bytes(IGNORE), st.booleans())
def test_patterns_are_compiled_or_listed(content: bytes, ignore_case: bool) -> None:
    """Each line of an ignore file is compiled, or is listed with its number as one that matches nothing."""
    file = parse_ignore_file(content, ".gitignore", ignore_case)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line, reason in file.unmatchable:
        assert lines[number - 1].startswith(line)
        assert reason


PROJECTS = [
    "project = 1",
    "project = []",
    "[project]\ndependencies = 5",
    "[project]\ndependencies = 'ray==1'",
    "[project]\ndependencies = [1, [2], {a = 1}]",
    "[project]\noptional-dependencies = []",
    "[project]\noptional-dependencies = {a = 1}",
    "a = " + "[" * 100_000,
    "[" * 100_000,
    "[project]\ndependencies = ['ray" + " " * 50_000 + "']",
    "[project]\ndependencies = ['ray==1" + "." * 50_000 + "!']",
]


@fuzz_settings
@given(any_bytes | changed_bytes(PYPROJECT) | st.sampled_from(PROJECTS).map(str.encode))
def test_pyproject_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """The pinned version of Ray is read, or SpecError is raised."""
    (tmp_path / "pyproject.toml").write_bytes(content)
    with contextlib.suppress(SpecError):
        assert isinstance(pinned_ray_version(tmp_path), str | None)


@pytest.mark.parametrize("content", PROJECTS, ids=lambda content: content[:20])
def test_hostile_pyproject(tmp_path: Path, content: str) -> None:
    """A pyproject.toml with values of other types is read as one without a pin, or is refused."""
    (tmp_path / "pyproject.toml").write_text(content)
    with contextlib.suppress(SpecError):
        assert pinned_ray_version(tmp_path) in (None, "1")


@fuzz_settings
@given(any_bytes | changed_bytes(SCRIPT), st.text(max_size=20) | st.just("bash a.sh"))
def test_script_with_any_content(tmp_path: Path, content: bytes, command: str) -> None:
    """Scripts that a command names are read, whatever they and the command contain."""
    (tmp_path / "a.sh").write_bytes(content)
    scripts = scripts_of_command(command, workdir="/w", remote_path="/w", root=tmp_path, files={"a.sh", command})
    for _, text in scripts:
        assert find_ray_calls(text) <= {"start", "stop"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [b"\n" * 900_000, b" \n" * 450_000, b"ray " * 220_000, b"ray" + b" " * 900_000])
def test_script_is_read_in_linear_time(tmp_path: Path, content: bytes) -> None:
    """A script that was made to be slow to search is searched in seconds."""
    (tmp_path / "a.sh").write_bytes(content)
    for _, text in scripts_of_command("a.sh", workdir="/w", remote_path="/w", root=tmp_path, files={"a.sh"}):
        find_ray_calls(text)


@fuzz_settings
@given(any_bytes | changed_bytes(ENV))
def test_env_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """A secret is read from a .env file, or SpecError is raised without the content of the file."""
    (tmp_path / ".env").write_bytes(content)
    with contextlib.suppress(SpecError):
        values = read_secret_values(["SKYRL_MODAL_FUZZ"], [tmp_path])
        assert isinstance(values["SKYRL_MODAL_FUZZ"], str)


@fuzz_settings
@given(any_bytes | st.sampled_from([b"-----BEGIN PRIVATE KEY-----\nAAAA", b"API_KEY=a1"]).flatmap(changed_bytes))
def test_secrets_in_any_content(content: bytes) -> None:
    """Any content is searched for keys; offsets are in the content."""
    assert all(0 <= offset < len(content) for offset, _ in find_secrets(content))


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: f"{content[:12]!r}...{len(content)}")
@pytest.mark.parametrize("name", [".git/HEAD", ".git/config", ".git/index", ".gitignore", "pyproject.toml", ".env"])
def test_hostile_content_in_a_checkout(tmp_path: Path, no_user_settings: None, name: str, content: bytes) -> None:
    """A checkout with hostile content is planned, or an error of this package is raised."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / name).write_bytes(content)
    assert os.path.isdir(select(tmp_path).root)
    with contextlib.suppress(SpecError):
        inspect_checkout(tmp_path)


@pytest.fixture
def no_user_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run without git settings of the user and the system."""
    with isolated_git_settings(tmp_path_factory.mktemp("settings")):
        yield
