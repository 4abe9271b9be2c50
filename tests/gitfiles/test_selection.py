"""The rules of a selection beyond git's own, its explanations, and invalid arguments."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.decision import RuleSource
from skyrl_modal.mount import select
from tests.gitfiles.repositories import git, listed_by_git
from tests.gitfiles.trees import has_warning, make


def test_selection_is_what_git_lists(tree: Path) -> None:
    """Negated folders, ignored tracked files and ignored folders are treated as by git."""
    selection = select(tree)
    assert list(selection.files) == listed_by_git(tree)
    assert "docs/lib/page.tsx" in selection.files
    assert "pkg/kept.log" in selection.files
    assert "pkg/run.log" not in selection.files


def test_excluded_names_the_rule(tree: Path) -> None:
    """An excluded path is listed with the line that excludes it, a folder as a whole."""
    excluded = select(tree).excluded
    assert excluded["pkg/run.log"] == ".gitignore:2: *.log"
    assert excluded["pkg/lib/"] == ".gitignore:3: lib/"
    assert ".venv/lib/site.py" not in excluded


def test_exclusions_have_the_kind_of_rule(tree: Path) -> None:
    """The kind of the rule is known without its text, also where a file has the name of another kind."""
    make(tree, {".skyrlignore": "/docs/\n", "empty/x.pyc": "", "exclude": "", "a.pyc": ""})
    (tree / "nothing").mkdir()
    selection = select(tree, exclude=["train.py"], skip_caches=True)
    kinds = {path: by for path, _, by in selection.exclusions}
    assert kinds["train.py"] is RuleSource.EXCLUDE
    assert kinds["docs/"] is RuleSource.SKYRLIGNORE
    assert kinds["pkg/run.log"] is RuleSource.GIT
    assert kinds["a.pyc"] is RuleSource.CACHES
    assert kinds["nothing/"] is None


def test_include_takes_precedence_over_git(tree: Path) -> None:
    """An include selects a file or a folder also in an ignored folder."""
    files = select(tree, include=[".env", "build/keep/", "pkg/lib/"]).files
    assert {".env", "build/keep/model.pt", "pkg/lib/core.py"} <= set(files)
    assert "build/junk.o" not in files


def test_exclude_takes_precedence_over_tracked(tree: Path) -> None:
    """An exclude also excludes a tracked file; an include takes precedence over an exclude."""
    assert "train.py" not in select(tree, exclude=["train.py"]).files
    assert "pkg/kept.log" not in select(tree, exclude=["/pkg/"]).files
    assert "pkg/kept.log" in select(tree, exclude=["/pkg/*"], include=["pkg/kept.log"]).files
    assert "pkg/kept.log" in select(tree, exclude=["/pkg/"], include=["pkg/kept.log"]).files


def test_unanchored_include_skips_ignored_folders(tree: Path) -> None:
    """``*.py`` does not search all of .venv; a pattern with a slash does."""
    assert ".venv/lib/site.py" not in select(tree, include=["*.py"]).files
    assert ".venv/lib/site.py" in select(tree, include=[".venv/lib/*.py"]).files
    assert ".venv/lib/site.py" in select(tree, include=[".venv/**/*.py"]).files


def test_skyrlignore_is_read_with_gitignore(tree: Path) -> None:
    """.skyrlignore takes precedence over git in both directions, and include and exclude over .skyrlignore."""
    make(tree, {".skyrlignore": "/docs/\n!.env\npkg/kept.log\n", "pkg/.skyrlignore": "!run.log\n"})
    files = select(tree).files
    assert ".env" in files
    assert "pkg/run.log" in files
    assert not any(path.startswith("docs/") for path in files)
    assert "pkg/kept.log" not in files
    assert "docs/lib/page.tsx" in select(tree, include=["docs/lib/page.tsx"]).files
    assert ".env" not in select(tree, exclude=[".env"]).files


CACHES = ["a/__pycache__/b.c", "x.pyc", ".venv/p", "p.egg-info/q", ".pytest_cache/r", "w/node_modules/s", ".DS_Store"]


def test_skip_caches(tmp_path: Path, no_settings: Path) -> None:
    """Untracked caches are excluded without an ignore file; tracked ones and those in an include are included."""
    root = make(tmp_path / "r", dict.fromkeys([*CACHES, "a.py"], ""))
    git("init", "-q", cwd=root)
    assert len(select(root).files) == len(CACHES) + 1
    assert select(root, skip_caches=True).files == ("a.py",)
    git("add", "-f", "x.pyc", "w/node_modules/s", cwd=root)
    assert select(root, skip_caches=True).files == ("a.py", "w/node_modules/s", "x.pyc")
    assert ".venv/p" in select(root, include=[".venv"], skip_caches=True).files
    assert "a/__pycache__/b.c" not in select(root, include=["/a/"], skip_caches=True).files


def test_links_are_included_as_links(tmp_path: Path, no_settings: Path) -> None:
    """A link to a folder is one file; a link that leads nowhere in the run causes a warning."""
    root = make(tmp_path / "r", {"code/a.py": ""})
    (root / "to_folder").symlink_to("code")
    (root / "dangling").symlink_to("nowhere")
    (root / "outside").symlink_to(tmp_path)
    selection = select(root)
    assert selection.files == ("code/a.py", "dangling", "outside", "to_folder")
    assert has_warning(selection, "dangling is a link")
    assert has_warning(selection, "outside is a link", "outside of the root")
    assert not has_warning(selection, "to_folder")


def test_empty_folders_are_excluded(tmp_path: Path, no_settings: Path) -> None:
    """An empty folder is excluded, as in git, and listed."""
    (tmp_path / "r" / "outputs").mkdir(parents=True)
    selection = select(tmp_path / "r")
    assert selection.files == ()
    assert "empty folder" in selection.excluded["outputs/"]
    assert str(selection).startswith("0 files")


def test_special_files_are_excluded(tmp_path: Path, no_settings: Path) -> None:
    """Named pipes and sockets are excluded with a warning, and reading never blocks."""
    root = make(tmp_path / "r", {".gitignore": "*.sock\n", "a.py": ""})
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        previous = Path.cwd()
        os.chdir(root)  # The path of a socket is limited to about 100 bytes.
        try:
            one.bind("s")
            two.bind("ignored.sock")
        finally:
            os.chdir(previous)
    os.mkfifo(root / ".skyrlignore")
    selection = select(root)
    assert selection.files == (".gitignore", "a.py")
    assert has_warning(selection, "pipe is a named pipe")
    assert has_warning(selection, "s is a socket")
    assert not has_warning(selection, "ignored.sock")


@pytest.mark.parametrize("place", [".git/config", ".git/info/exclude", ".git/index", "excludes", "sub/.gitignore"])
def test_named_pipes_do_not_block_a_selection(tree: Path, place: str) -> None:
    """A named pipe in the place of a file that git reads counts as empty."""
    (tree / "sub").mkdir()
    git("config", "core.excludesFile", str(tree / "excludes"), cwd=tree)
    (tree / place).unlink(missing_ok=True)
    os.mkfifo(tree / place)
    assert "train.py" in select(tree).files
    assert select(tree).explain("train.py")


def test_unusual_names(tmp_path: Path, no_settings: Path) -> None:
    """Names that are not UTF-8 or contain newlines keep their bytes and cause a warning."""
    root = tmp_path / "r"
    git("init", "-q", str(root), cwd=tmp_path)
    for name in (b"\xff.py", b"new\nline", b"tab\t", "é".encode(), "日本".encode(), b"\xed\xa0\x80"):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).touch()
    selection = select(root)
    assert sorted(map(os.fsencode, selection.files)) == sorted(map(os.fsencode, listed_by_git(root)))
    assert list(selection.files) == sorted(selection.files)
    assert has_warning(selection, "not UTF-8")
    assert has_warning(selection, "control characters")
    assert not has_warning(selection, "é")
    str(selection).encode()


@pytest.mark.parametrize(
    ("path", "explanation"),
    [
        ("train.py", "train.py is included: no rule matches it"),
        ("pkg/kept.log", "pkg/kept.log is included: tracked by git, which takes precedence over .gitignore:2: *.log"),
        ("pkg/run.log", "pkg/run.log is excluded: .gitignore:2: *.log"),
        ("docs/lib", "docs/lib/ is included: .gitignore:4: !docs/lib/"),
        ("pkg/lib/core.py", "pkg/lib/core.py is excluded: its folder pkg/lib/ is excluded (.gitignore:3: lib/)"),
        (".git/config", ".git is excluded: .git is never included"),
    ],
)
def test_explain(tree: Path, path: str, explanation: str) -> None:
    """The explanation names the line that decides, or another reason."""
    assert select(tree).explain(path) == explanation
    assert select(tree).explain(tree / path) == explanation


def test_explain_agrees_with_the_selection(tree: Path) -> None:
    """For every file, with every kind of rule, the explanation states whether the file is selected."""
    make(tree, {".skyrlignore": "!.env\n/docs/\n"})
    selection = select(tree, include=["build/keep/"], exclude=["/pkg/__init__.py"], skip_caches=True)
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), tree)
            explanation = selection.explain(path)
            assert (" is included: " in explanation) == (path in selection.files), explanation


def test_selection_as_text(tree: Path) -> None:
    """The text contains the total, the largest files, the excluded paths by rule and the warnings."""
    text = str(select(tree))
    for part in ("files, ", "largest", "excluded, by rule", ".gitignore:3: lib/", "warnings", "train.py"):
        assert part in text


def test_digest_covers_paths_modes_and_contents(tree: Path) -> None:
    """The digest changes with path, mode and content, and with nothing else."""
    first = select(tree).digest
    os.utime(tree / "train.py", (1, 1))
    assert select(tree).digest == first
    (tree / "train.py").chmod(0o755)
    second = select(tree).digest
    (tree / "train.py").write_text("print(2)\n")
    third = select(tree).digest
    (tree / "train.py").rename(tree / "main.py")
    assert len({first, second, third, select(tree).digest}) == 4


def test_selection_is_immutable(tree: Path) -> None:
    """Attributes cannot be set, and two selections of the same files are equal."""
    with pytest.raises(AttributeError):
        select(tree).files = ()  # type: ignore[misc]  # setting it is what the test refuses
    assert select(tree) == select(tree)


@pytest.mark.parametrize(
    ("arguments", "field", "remedy"),
    [
        ({"include": ["a["]}, "include", "without its ]"),
        ({"exclude": ["[[:nope:]]"]}, "exclude", "not a class"),
        ({"include": "*.pt"}, "include", "give a list"),
        ({"exclude": ["../x"]}, "exclude", "no .."),
        ({"exclude": [""]}, "exclude", "one pattern"),
        ({"exclude": ["a\nb"]}, "exclude", "one pattern"),
        ({"exclude": ["# a"]}, "exclude", "one pattern"),
        ({"exclude": [1]}, "exclude", "text"),
        ({"include": ["/"]}, "include", "nothing is left"),
    ],
)
def test_invalid_patterns(tree: Path, arguments: dict[str, object], field: str, remedy: str) -> None:
    """The error contains the field, the value and the remedy."""
    with pytest.raises(SpecError) as caught:
        select(tree, **arguments)  # type: ignore[arg-type]  # invalid types are part of the test
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_invalid_roots_and_paths(tree: Path) -> None:
    """A root that is absent or a file, and a path that is absent or outside, are errors."""
    with pytest.raises(SpecError, match="no such folder"):
        select(tree / "absent")
    with pytest.raises(SpecError, match="not a folder"):
        select(tree / "train.py")
    with pytest.raises(SpecError, match=r"without \.\."):
        select(tree).explain("../x")
    with pytest.raises(SpecError, match="give a path in"):
        select(tree).explain("/etc/passwd")
    with pytest.raises(SpecError, match="cannot be read"):
        select(tree).explain("absent.py")


def test_root_behind_a_link(tree: Path, tmp_path: Path) -> None:
    """A root that is a link is replaced by its target."""
    (tmp_path / "link").symlink_to(tree)
    assert select(tmp_path / "link" / ".." / "link") == select(tree)
