"""What is selected besides what git says, and what is said about it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from skyrl_modal.errors import SpecError
from skyrl_modal.mount import Selection, select
from tests.gitfiles.repositories import Templates, git, listed_by_git


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    """Writes files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return root


@pytest.fixture
def tree(tmp_path: Path, no_settings: Path) -> Path:
    """A repository of SkyRL's shape: its traps, in words of our own."""
    root = make(
        tmp_path / "checkout",
        {
            ".gitignore": "__pycache__/\n*.log\nlib/\n!docs/lib/\nbuild/\n.env\n.venv\n",
            "train.py": "print(1)\n",
            "docs/lib/page.tsx": "x",
            "pkg/__init__.py": "",
            "pkg/lib/__init__.py": "",
            "pkg/lib/core.py": "",
            "pkg/kept.log": "tracked",
            "pkg/run.log": "",
            "pkg/__pycache__/a.pyc": "",
            "build/keep/model.pt": "m",
            "build/junk.o": "",
            ".env": "WANDB_API_KEY=x\n",
            ".venv/pyvenv.cfg": "",
            ".venv/lib/site.py": "",
        },
    )
    git("init", "-q", cwd=root)
    git("add", "-f", "train.py", "pkg/kept.log", cwd=root)
    return root


def warned(selection: Selection, *words: str) -> bool:
    """Whether one warning has all of these words."""
    return any(all(word in warning for word in words) for warning in selection.warnings)


def test_the_set_is_gits_own(tree: Path) -> None:
    """Negated folders, tracked files that are ignored, and ignored folders are as git has them."""
    selection = select(tree)
    assert list(selection.files) == listed_by_git(tree)
    assert "docs/lib/page.tsx" in selection.files
    assert "pkg/kept.log" in selection.files
    assert "pkg/run.log" not in selection.files


def test_excluded_names_the_rule(tree: Path) -> None:
    """What stays is told with the line that says so, a folder as a whole."""
    excluded = select(tree).excluded
    assert excluded["pkg/run.log"] == ".gitignore:2: *.log"
    assert excluded["pkg/lib/"] == ".gitignore:3: lib/"
    assert ".venv/lib/site.py" not in excluded


def test_include_wins_over_git(tree: Path) -> None:
    """An include takes a file, or a folder with all that is in it, out of an ignored folder as well."""
    files = select(tree, include=[".env", "build/keep/", "pkg/lib/"]).files
    assert {".env", "build/keep/model.pt", "pkg/lib/core.py"} <= set(files)
    assert "build/junk.o" not in files


def test_exclude_wins_over_tracked(tree: Path) -> None:
    """An exclude leaves a tracked file behind; an include wins over an exclude."""
    assert "train.py" not in select(tree, exclude=["train.py"]).files
    assert "pkg/kept.log" not in select(tree, exclude=["/pkg/"]).files
    assert "pkg/kept.log" in select(tree, exclude=["/pkg/*"], include=["pkg/kept.log"]).files
    assert "pkg/kept.log" in select(tree, exclude=["/pkg/"], include=["pkg/kept.log"]).files


def test_an_unanchored_include_does_not_search_ignored_folders(tree: Path) -> None:
    """``*.py`` does not send the walk through all of .venv; a pattern with a slash reaches where it says."""
    assert ".venv/lib/site.py" not in select(tree, include=["*.py"]).files
    assert ".venv/lib/site.py" in select(tree, include=[".venv/lib/*.py"]).files
    assert ".venv/lib/site.py" in select(tree, include=[".venv/**/*.py"]).files


def test_skyrlignore_is_read_beside_gitignore(tree: Path) -> None:
    """It wins over git in both directions, and loses to include and exclude."""
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
    """Untracked caches stay where no ignore file names them; tracked ones go, and so does what an include names."""
    root = make(tmp_path / "r", dict.fromkeys([*CACHES, "a.py"], ""))
    git("init", "-q", cwd=root)
    assert len(select(root).files) == len(CACHES) + 1
    assert select(root, skip_caches=True).files == ("a.py",)
    git("add", "-f", "x.pyc", "w/node_modules/s", cwd=root)
    assert select(root, skip_caches=True).files == ("a.py", "w/node_modules/s", "x.pyc")
    assert ".venv/p" in select(root, include=[".venv"], skip_caches=True).files
    assert "a/__pycache__/b.c" not in select(root, include=["/a/"], skip_caches=True).files


def test_a_plain_folder_is_read_as_a_fresh_repository(tmp_path: Path, no_settings: Path) -> None:
    """Without git the ignore files hold, the user's own as well."""
    root = make(tmp_path / "plain", {".gitignore": "*.o\n", "a.o": "", "a.tmp": "", "a.c": "", "sub/.gitignore": "b\n"})
    make(no_settings, {"xdg/git/ignore": "*.tmp\n"})
    os.environ["XDG_CONFIG_HOME"] = str(no_settings / "xdg")
    assert select(root).files == (".gitignore", "a.c", "sub/.gitignore")


def test_settings_are_followed_through_includes(tmp_path: Path, no_settings: Path) -> None:
    """core.excludesFile is found where git finds it: in an included file, under a condition, with ~."""
    root = make(tmp_path / "work" / "r", {"a.x": "", "a.y": "", "a.z": "", "b": ""})
    git("init", "-q", cwd=root)
    make(no_settings, {"ignored by me": "*.x\n", "other": "*.y\n"})
    (no_settings / ".gitconfig").write_text(
        f'[includeIf "gitdir:{tmp_path}/work/"]\n\tpath = inc # here\n[includeIf "gitdir:/nowhere/"]\n\tpath = inc2\n'
    )
    (no_settings / "inc").write_text('[Core]\n\tExcludesFile = "~/ignored \\\nby me"\n')
    (no_settings / "inc2").write_text("[core]\n\texcludesFile = ~/other\n")
    assert list(select(root).files) == listed_by_git(root) == ["a.y", "a.z", "b"]


def test_dubious_ownership_is_no_obstacle(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git refuses to look at, since it is somebody else's, is selected all the same."""
    before = select(tree).files
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "ls-files"], cwd=tree, capture_output=True, check=False)
    assert b"dubious ownership" in refused.stderr
    assert select(tree).files == before


def test_git_need_not_be_there(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is run."""
    before = select(tree).files
    monkeypatch.setenv("PATH", "")
    assert select(tree).files == before


def sparse(root: Path) -> None:
    """A repository with packed objects, some of them as deltas, and ignore files in three folders."""
    long = "".join(f"{number}\n" for number in range(2000))
    make(root, {f"{name}/.gitignore": f"{long}*.tmp\n!{name}.tmp\n" for name in ("in", "out", "out/deep")})
    make(root, {f"{name}/a.py": "" for name in ("in", "out", "out/deep")} | {"out/kept.tmp": "tracked", "a.py": ""})
    git("init", "-q", cwd=root)
    git("add", "-f", ".", cwd=root)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", cwd=root)
    git("gc", "-q", cwd=root)


@pytest.mark.parametrize("mode", ["--cone", "--no-cone", "--sparse-index"])
def test_sparse_checkouts(tmp_path: Path, no_settings: Path, mode: str) -> None:
    """What a sparse checkout leaves out is read from git's objects: the ignore files, the folders of a sparse index."""
    root = tmp_path / "r"
    sparse(root)
    git("sparse-checkout", "set", *(["--cone", mode] if mode == "--sparse-index" else [mode]), "in", cwd=root)
    assert not (root / "out").exists()
    assert list(select(root).files) == listed_by_git(root)
    make(root, {"in/x.tmp": "", "in/in.tmp": "", "out/x.tmp": "", "out/out.tmp": "", "out/kept.tmp": "", "out/new": ""})
    make(root, {"out/deep/deep.tmp": "", "out/deep/no.tmp": ""})
    assert list(select(root).files) == listed_by_git(root)


def test_an_ignore_file_that_is_skipped_is_read_from_the_index(tmp_path: Path, no_settings: Path) -> None:
    """git does so for one entry as well, in a loose object."""
    root = make(tmp_path / "r", {".gitignore": "*.o\n", "a.o": "", "a.c": ""})
    git("init", "-q", cwd=root)
    git("add", ".gitignore", cwd=root)
    git("update-index", "--skip-worktree", ".gitignore", cwd=root)
    (root / ".gitignore").unlink()
    assert list(select(root).files) == listed_by_git(root) == ["a.c"]


def test_a_submodule_goes_as_its_own_repository_says(tmp_path: Path, no_settings: Path) -> None:
    """The rules of the outer repository end at it; one that is not checked out is told."""
    inner = make(tmp_path / "inner", {"a.log": "", "b.o": "", ".gitignore": "*.o\n"})
    git("init", "-q", cwd=inner)
    git("add", ".", cwd=inner)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", cwd=inner)
    root = make(tmp_path / "outer", {".gitignore": "*.log\nsub/\n", "x.log": ""})
    git("init", "-q", cwd=root)
    git("-c", "protocol.file.allow=always", "submodule", "-q", "add", "-f", str(inner), "sub", cwd=root)
    make(root, {"sub/new.log": "", "sub/new.o": ""})
    assert list(select(root).files) == listed_by_git(root)
    assert "sub/new.log" in select(root).files
    git("submodule", "-q", "deinit", "-f", "sub", cwd=root)
    assert warned(select(root), "submodule sub", "git submodule update --init")


def test_links_go_as_links(tmp_path: Path, no_settings: Path) -> None:
    """A link to a folder is one file; one that leads nowhere in the run is told."""
    root = make(tmp_path / "r", {"code/a.py": ""})
    (root / "to_folder").symlink_to("code")
    (root / "dangling").symlink_to("nowhere")
    (root / "outside").symlink_to(tmp_path)
    selection = select(root)
    assert selection.files == ("code/a.py", "dangling", "outside", "to_folder")
    assert warned(selection, "dangling is a link")
    assert warned(selection, "outside is a link", "outside of the root")
    assert not warned(selection, "to_folder")


def test_empty_folders_stay(tmp_path: Path, no_settings: Path) -> None:
    """As in git; they are named."""
    (tmp_path / "r" / "outputs").mkdir(parents=True)
    selection = select(tmp_path / "r")
    assert selection.files == ()
    assert "empty folder" in selection.excluded["outputs/"]
    assert str(selection).startswith("0 files")


def test_special_files_are_named_and_stay(tmp_path: Path, no_settings: Path) -> None:
    """A pipe or a socket is not waited for."""
    root = make(tmp_path / "r", {".gitignore": "*.sock\n", "a.py": ""})
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        previous = Path.cwd()
        os.chdir(root)  # the path of a socket is short
        try:
            one.bind("s")
            two.bind("ignored.sock")
        finally:
            os.chdir(previous)
    os.mkfifo(root / ".skyrlignore")
    selection = select(root)
    assert selection.files == (".gitignore", "a.py")
    assert warned(selection, "pipe is a named pipe")
    assert warned(selection, "s is a socket")
    assert not warned(selection, "ignored.sock")


def test_odd_names(tmp_path: Path, no_settings: Path) -> None:
    """Names that are not UTF-8, or have newlines, go under their own bytes and are told."""
    root = tmp_path / "r"
    git("init", "-q", str(root), cwd=tmp_path)
    for name in (b"\xff.py", b"new\nline", b"tab\t", "é".encode(), "日本".encode(), b"\xed\xa0\x80"):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).touch()
    selection = select(root)
    assert sorted(map(os.fsencode, selection.files)) == sorted(map(os.fsencode, listed_by_git(root)))
    assert list(selection.files) == sorted(selection.files)
    assert warned(selection, "not UTF-8")
    assert warned(selection, "control characters")
    assert not warned(selection, "é")
    str(selection).encode()


# Imported before: somebody else may not read this Python's own files.
UNPRIVILEGED = """
import os, sys
from skyrl_modal.mount import SnapshotStore, select
os.setuid(65534)
selection = select(sys.argv[1])
print(ascii((selection.files, selection.warnings)))
print(ascii(SnapshotStore(sys.argv[2]).take(selection).warnings))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody whom the files do not belong to")
def test_unreadable_files_are_named(no_settings: Path) -> None:
    """An unreadable file, folder or ignore file is told by name with what to do, and is no traceback."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        root = make(Path(name, "r"), {"a.py": "", "key": "", "shut/b.py": "", "sub/.gitignore": "x", "sub/x": ""})
        for closed in ("key", "sub/.gitignore", "shut"):
            (root / closed).chmod(0)
        command = [sys.executable, "-c", UNPRIVILEGED, str(root), str(Path(name, "store"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    told, missing = done.stdout.splitlines()
    for part in ("key cannot be read", "shut/ cannot be read", "sub/.gitignore cannot be read", "chmod"):
        assert part in told
    assert "key cannot be read" in missing


def test_files_that_vanish_are_named(tmp_path: Path, no_settings: Path) -> None:
    """Between the walk and what follows anything may happen."""
    root = make(tmp_path / "r", {"a.py": "", "b.py": ""})
    selection = select(root)
    (root / "b.py").unlink()
    assert warned(selection, "b.py vanished")
    assert selection.bytes == 0


def test_the_ignored_env_is_told(tree: Path) -> None:
    """SkyRL's workers need it, and SkyRL's own ignore file drops it."""
    assert warned(select(tree), ".env stays behind (.gitignore:6: .env)", 'include=["/.env"]')
    assert not warned(select(tree, include=["/.env"]), ".env")
    assert not warned(select(tree, exclude=["/.env"]), ".env")


def test_ignored_modules_are_told(tree: Path) -> None:
    """A folder with Python modules that an ignore file drops by its name, but not an environment."""
    selection = select(tree)
    assert warned(selection, "pkg/lib/", "Python modules", 'include=["/pkg/lib/"]')
    assert not warned(selection, ".venv")
    assert not warned(selection, "__pycache__")


def test_keys_and_tokens_are_told(tmp_path: Path, no_settings: Path) -> None:
    """By name, or where the name is ambiguous by what is in it; the content is not shown."""
    secret = "hf_" + "a" * 34
    root = make(
        tmp_path / "r",
        {
            "id_ed25519": "",
            "certs/public.pem": "-----BEGIN CERTIFICATE-----",
            "certs/private.pem": "-----BEGIN RSA PRIVATE KEY-----",
            "my_token.txt": secret,
            "tokenizer.py": "tokens = 1",
        },
    )
    selection = select(root)
    assert warned(selection, "id_ed25519")
    assert warned(selection, "certs/private.pem", 'exclude=["/certs/private.pem"]')
    assert warned(selection, "my_token.txt")
    assert not warned(selection, "public.pem")
    assert not warned(selection, "tokenizer")
    assert secret not in str(selection)


def sparse_file(path: Path, size: int) -> None:
    """A file that has a size and takes no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_large_selections_are_told(tree: Path) -> None:
    """The total with the ten largest, and each heavy folder in which nothing is tracked."""
    sparse_file(tree / "data" / "raw" / "a.parquet", 300 << 20)
    sparse_file(tree / "data" / "b.parquet", 250 << 20)
    sparse_file(tree / "pkg" / "weights" / "w.bin", 60 << 20)
    for number in range(10):
        sparse_file(tree / f"n{number}", 1 << 20)
    selection = select(tree)
    assert selection.bytes > 610 << 20
    assert warned(selection, "would go; the largest: data/raw/a.parquet (300.0 MB), data/b.parquet (250.0 MB)")
    assert warned(selection, "n6 (1.0 MB)")
    assert not warned(selection, "n7 (1.0 MB)")
    assert warned(selection, "data/ would go with 550.0 MB", 'exclude=["/data/"]')
    assert warned(selection, "pkg/weights/ would go with 60.0 MB")
    assert not warned(selection, "pkg/ would go")


@pytest.mark.slow
def test_many_files_are_told(templates: Templates, no_settings: Path) -> None:
    """More than 50,000 files."""
    with tempfile.TemporaryDirectory(dir=templates.sha1.parent.parent) as root:
        for number in range(50_001):
            os.close(os.open(f"{root}/{number}", os.O_CREAT))
        assert warned(select(root), "50,001 files")


def test_patterns_that_match_nothing_are_told_by_file_and_line(tree: Path) -> None:
    """In an ignore file git is silent about them."""
    make(tree, {"pkg/.gitignore": "ok\n\n[a-\n"})
    assert warned(select(tree), "pkg/.gitignore:3: '[a-'", "matches nothing")


def test_an_include_that_matches_nothing_is_told(tree: Path) -> None:
    """It is most often a mistyped name."""
    assert warned(select(tree, include=["/tarin.py"]), "'/tarin.py' matches nothing")
    assert not warned(select(tree, include=["/train.py", "docs/"]), "matches nothing")


def test_a_root_in_an_ignored_folder_is_told(tmp_path: Path, no_settings: Path) -> None:
    """git takes nothing of it, and so it is said loudly."""
    outer = make(tmp_path / "outer", {".gitignore": "vendored/\n", "vendored/SkyRL/a.py": ""})
    git("init", "-q", cwd=outer)
    root = outer / "vendored" / "SkyRL"
    assert list(select(root).files) == listed_by_git(root) == []
    assert warned(select(root), "git ignores the folder vendored/", "git init")
    assert select(root, include=["/**"]).files == ("a.py",)


def test_a_damaged_index_is_told(tree: Path) -> None:
    """Then tracked files that are ignored stay, and the user knows."""
    (tree / ".git" / "index").write_bytes(b"no index")
    selection = select(tree)
    assert "train.py" in selection.files
    assert warned(selection, "index", "cannot be read")


def test_a_broken_configuration_is_told(tree: Path) -> None:
    """With the file and the line."""
    (tree / ".git" / "config").write_text("[core]\n\tbare = false\n[oops\n")
    assert warned(select(tree), ".git/config", "line 3")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("train.py", "train.py goes: no rule speaks of it"),
        ("pkg/kept.log", "pkg/kept.log goes: tracked by git, which wins over .gitignore:2: *.log"),
        ("pkg/run.log", "pkg/run.log stays: .gitignore:2: *.log"),
        ("docs/lib", "docs/lib/ goes: .gitignore:4: !docs/lib/"),
        ("pkg/lib/core.py", "pkg/lib/core.py stays: its folder pkg/lib/ does (.gitignore:3: lib/), and is not entered"),
        (".git/config", ".git stays: .git never goes"),
    ],
)
def test_explain(tree: Path, path: str, said: str) -> None:
    """The line that decides, or what else does."""
    assert select(tree).explain(path) == said
    assert select(tree).explain(tree / path) == said


def test_explain_agrees_with_the_selection(tree: Path) -> None:
    """For every file there is, with every kind of rule in force."""
    make(tree, {".skyrlignore": "!.env\n/docs/\n"})
    selection = select(tree, include=["build/keep/"], exclude=["/pkg/__init__.py"], skip_caches=True)
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), tree)
            assert (" goes: " in selection.explain(path)) == (path in selection.files), selection.explain(path)


def test_it_prints_as_a_table(tree: Path) -> None:
    """The total, the largest, what stays by rule, the warnings."""
    text = str(select(tree))
    for part in ("files, ", "largest", "left out, by rule", ".gitignore:3: lib/", "warnings", "train.py"):
        assert part in text


def test_the_digest_is_of_paths_modes_and_contents(tree: Path) -> None:
    """And of nothing else."""
    first = select(tree).digest
    os.utime(tree / "train.py", (1, 1))
    assert select(tree).digest == first
    (tree / "train.py").chmod(0o755)
    second = select(tree).digest
    (tree / "train.py").write_text("print(2)\n")
    third = select(tree).digest
    (tree / "train.py").rename(tree / "main.py")
    assert len({first, second, third, select(tree).digest}) == 4


def test_a_selection_does_not_change(tree: Path) -> None:
    """It is a record."""
    with pytest.raises(AttributeError):
        select(tree).files = ()  # type: ignore[misc]  # that it is refused is what is shown
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
def test_wrong_patterns(tree: Path, arguments: dict[str, object], field: str, remedy: str) -> None:
    """The field, the value, and what would do."""
    with pytest.raises(SpecError) as caught:
        select(tree, **arguments)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_wrong_roots_and_paths(tree: Path) -> None:
    """Absent, a file, or outside."""
    with pytest.raises(SpecError, match="no such folder"):
        select(tree / "absent")
    with pytest.raises(SpecError, match="not a folder"):
        select(tree / "train.py")
    with pytest.raises(SpecError, match=r"without \.\."):
        select(tree).explain("../x")
    with pytest.raises(SpecError, match="give a path in"):
        select(tree).explain("/etc/passwd")
    with pytest.raises(SpecError, match="cannot be looked at"):
        select(tree).explain("absent.py")


def test_a_root_behind_a_link(tree: Path, tmp_path: Path) -> None:
    """Is the folder that it leads to."""
    (tmp_path / "link").symlink_to(tree)
    assert select(tmp_path / "link" / ".." / "link") == select(tree)
