"""The walk: top-down, an excluded folder is not entered, and each name is judged once.

Who decides about a path, the strongest first: ``exclude`` and ``include``; the ``.skyrlignore`` files; git (what is
tracked goes, then the deepest ``.gitignore``, ``info/exclude`` and ``core.excludesFile``); what caches are called.
"""

from __future__ import annotations

import os
import stat
from enum import Enum
from pathlib import Path

from attrs import define, evolve, field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.matcher import Chain, Here, Sieve
from skyrl_modal.gitfiles.overrides import UserRules
from skyrl_modal.gitfiles.pattern import Ruleset, parse
from skyrl_modal.gitfiles.repository import Repository, find, repository_of, unreadable

# What an environment or a tool leaves behind, and never source: `MountSpec.skip_caches`.
CACHES = b".venv\n__pycache__\n*.pyc\n*.egg-info\n.pytest_cache\nnode_modules\n.DS_Store\n"
_GITIGNORE, _OURS, _GIT = b".gitignore", b".skyrlignore", b".git"
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Mode(Enum):
    """What holds in a folder for names that no stronger rule speaks of."""

    NORMAL = "git decides"
    WHOLE = "they go, but caches: an include names the folder"
    WHOLE_WITH_CACHES = "they go: an include names the cache"
    TRACKED = "they go if they are tracked: git ignores the folder, or it is a cache"
    NOTHING = "they stay: an exclude or .skyrlignore names the folder"


_QUIET = (Mode.TRACKED, Mode.NOTHING)


@frozen
class Verdict:
    """Why a path goes or stays.

    Attributes:
        goes: Whether it does; a folder that stays may still be entered.
        reason: In words.
        mode: For a folder: what holds in it; None where it is not entered.
    """

    goes: bool
    reason: str
    mode: Mode | None = None


@frozen(eq=False)
class Folder:
    """A folder on the way: where it is and what is in force in it.

    Attributes:
        path: On disk.
        at: From the root of the selection, with a slash at its end, or empty.
        repository: The worktree that it belongs to.
        cut: How much of ``at`` leads to the top of that worktree, where that lies below the root.
        prefix: What leads from that top to the root, where that lies above.
        git: The ignore files of git.
        ours: The ``.skyrlignore`` files.
        mode: What holds for names that no stronger rule speaks of.
        reason: Why, where that is not ``Mode.NORMAL``.
    """

    path: bytes
    at: bytes
    repository: Repository
    cut: int
    prefix: bytes
    git: Chain
    ours: Chain
    mode: Mode = Mode.NORMAL
    reason: str = ""

    @property
    def in_repository(self) -> bytes:
        """The folder from the top of its worktree, with a slash at its end, or empty."""
        return self.prefix + self.at[self.cut :]


@define
class Found:
    """What a walk found.

    Attributes:
        files: What goes, from the root.
        excluded: What stays, with the reason; a folder ends in a slash.
        warnings: What happened on the way.
        tops: The folders at which a worktree begins, the root's own first.
    """

    files: list[bytes] = field(factory=list)
    excluded: list[tuple[bytes, str]] = field(factory=list)
    warnings: list[str] = field(factory=list)
    tops: list[Folder] = field(factory=list)


class Walker:
    """Judges and walks the tree below one folder.

    Args:
        root: A folder, absolute and without symbolic links.
        user: The lines of ``exclude`` and of ``include``.
        skip_caches: Whether untracked caches stay behind.
    """

    def __init__(self, root: Path, user: UserRules, skip_caches: bool) -> None:
        self._root = root
        self.found = Found()
        self._repository = repository = find(root)
        fold = self._ignore_case = repository.ignore_case
        self._user, self._reaching = user.chain(fold), user.reaching(fold)
        self._caches = Chain(ignore_case=fold)
        if skip_caches:
            self._caches = self._caches.extended(parse(CACHES, "skip_caches", fold), b"")
        self._own = [chain for chain in (self._user, self._reaching, self._caches) if chain]
        self._sieves: dict[tuple[Here, ...], Sieve] = {}

    def start(self) -> Folder:
        """The root, with what is in force in it from the folders above it."""
        root, repository = self._root, self._repository
        folder = Folder(
            os.fsencode(repository.top), b"", repository, 0, b"", repository.chain, Chain(ignore_case=self._ignore_case)
        )
        for part in root.relative_to(repository.top).parts:
            name = os.fsencode(part)
            folder = evolve(folder, git=self._git_chain(folder, _lies_in(folder.path, _GITIGNORE)))
            rule = folder.git.rule(folder.prefix, name, True)
            folder = evolve(folder, path=os.path.join(folder.path, name), prefix=folder.prefix + name + b"/")
            if rule is not None and not rule.negated and folder.mode is Mode.NORMAL:
                reason = f"git ignores the folder {os.fsdecode(folder.prefix)} ({rule})"
                self.found.warnings.append(
                    f"{reason} of the repository {repository.top}, in which the root lies: only tracked files go; "
                    'make the root a repository of its own (`git init`), or give include=["/**"]'
                )
                folder = evolve(folder, mode=Mode.TRACKED, reason=reason)
        self.found.tops.append(folder)
        return folder

    def walk(self) -> Found:
        """Everything below the root."""
        waiting = [self.start()]
        while waiting:
            waiting.extend(self._scan(waiting.pop()))
        problems = [problem for top in self.found.tops for problem in top.repository.problems]
        self.found.warnings = list(dict.fromkeys([*self.found.warnings, *problems]))
        return self.found

    def _scan(self, folder: Folder) -> list[Folder]:
        """Judges the names in a folder; returns the folders to enter."""
        files: list[bytes] = []
        folders: list[bytes] = []
        special: list[bytes] = []
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_symlink():
                        files.append(entry.name)
                    else:
                        special.append(entry.name)
        except OSError as error:
            self._not_scanned(folder, error)
            return []
        if not files and not folders and not special and folder.at and folder.mode is Mode.NORMAL:
            self.found.excluded.append((folder.at, "an empty folder; only files and links go, as in git"))
            return []
        folder = self.entered(folder, _GITIGNORE in files, _OURS in files, _GIT in folders or _GIT in files)
        sieve = self._sieve(folder)
        if sieve is None:
            suspects, suspect_folders = files, folders
        else:
            suspects = sieve.files(files)
            suspect_folders = sieve.folders(folders)
        at = folder.at
        if suspects or special:
            held = self._judged_files(folder, suspects, special)
            if held:
                files = [name for name in files if name not in held]
        self.found.files.extend([at + name for name in files])
        if not suspect_folders:
            return [self._below(folder, name) for name in folders]
        return self._judged_folders(folder, folders, frozenset(suspect_folders))

    def _judged_files(self, folder: Folder, names: list[bytes], special: list[bytes]) -> frozenset[bytes]:
        """Those of the names that stay behind."""
        held = []
        quiet = folder.mode in _QUIET and folder.at
        for name in (*names, *special):
            verdict = self.judge(folder, name, False)
            if verdict is not None and verdict.goes:
                continue
            held.append(name)
            if verdict is not None and not quiet:
                self.found.excluded.append((folder.at + name, verdict.reason))
        for name in special:
            if name not in held:
                kind = _kind(os.path.join(folder.path, name))
                shown = os.fsdecode(folder.at + name)
                self.found.excluded.append((folder.at + name, f"{kind}; only files and links go"))
                self.found.warnings.append(f"{shown} is {kind} and stays behind: remove or ignore it")
        return frozenset(held)

    def _judged_folders(self, folder: Folder, names: list[bytes], suspects: frozenset[bytes]) -> list[Folder]:
        """The folders to enter, each with what holds in it."""
        entered = []
        quiet = folder.mode in _QUIET and folder.at
        for name in names:
            if name not in suspects:
                entered.append(self._below(folder, name))
                continue
            verdict = self.judge(folder, name, True)
            if verdict is None:
                continue
            if not verdict.goes and not quiet:
                self.found.excluded.append((folder.at + name + b"/", verdict.reason))
            if verdict.mode is not None:
                entered.append(self.below(folder, name, verdict))
        return entered

    def below(self, folder: Folder, name: bytes, verdict: Verdict) -> Folder:
        """A folder that is entered by a verdict."""
        return evolve(self._below(folder, name), mode=verdict.mode or Mode.NOTHING, reason=verdict.reason)

    @staticmethod
    def _below(folder: Folder, name: bytes) -> Folder:
        path, at = folder.path + b"/" + name, folder.at + name + b"/"
        return Folder(
            path, at, folder.repository, folder.cut, folder.prefix, folder.git, folder.ours, folder.mode, folder.reason
        )

    def entered_alone(self, folder: Folder) -> Folder:
        """As ``entered``, for who has not listed the folder."""
        return self.entered(folder, *(_lies_in(folder.path, name) for name in (_GITIGNORE, _OURS, _GIT)))

    def entered(self, folder: Folder, has_gitignore: bool, has_ours: bool, has_git: bool) -> Folder:
        """A folder with what its own ignore files add, and with a repository of its own where it has one."""
        if has_git and folder.at and folder.mode not in _QUIET:
            folder = self._with_own_repository(folder)
        git = self._git_chain(folder, has_gitignore)
        ours = folder.ours
        if has_ours:
            ours = ours.extended(self._read(folder, _OURS, folder.at + _OURS), folder.at)
        if git is folder.git and ours is folder.ours:
            return folder
        return evolve(folder, git=git, ours=ours)

    def _with_own_repository(self, folder: Folder) -> Folder:
        """A submodule, or a clone inside of the checkout: git's set of it is what its own repository says.

        A folder of which the outer repository tracks files is none, whatever ``.git`` lies in it.
        """
        top = Path(os.fsdecode(folder.path))
        git_dir = repository_of(top)
        outer = folder.repository.readable_index
        inside = folder.in_repository[:-1]
        if git_dir is None or (outer is not None and outer.tracks_folder(inside) and not outer.is_submodule(inside)):
            return folder
        repository = Repository(top, git_dir)
        folder = evolve(folder, repository=repository, cut=len(folder.at), prefix=b"", git=repository.chain)
        self.found.tops.append(folder)
        return folder

    def _git_chain(self, folder: Folder, has_gitignore: bool) -> Chain:
        inside = folder.in_repository
        shown = folder.at + _GITIGNORE if folder.cut or not folder.prefix else inside + _GITIGNORE
        if has_gitignore:
            return folder.git.extended(self._read(folder, _GITIGNORE, shown), inside)
        content = folder.repository.absent_ignore_files.get(inside + _GITIGNORE)
        if content is None:
            return folder.git
        return folder.git.extended(folder.repository.rules(content, f"{os.fsdecode(shown)} (in the index)"), inside)

    def _read(self, folder: Folder, name: bytes, shown: bytes) -> Ruleset:
        """The rules of an ignore file in the tree; a symbolic link is not followed, as in git."""
        path, label = os.path.join(folder.path, name), os.fsdecode(shown)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NOFOLLOW), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return Ruleset()
        except OSError as error:
            if os.path.islink(path):
                self.found.warnings.append(
                    f"{label} is a symbolic link, which git does not follow: its patterns are not in force; copy it"
                )
            else:
                self.found.warnings.append(unreadable(label, error))
            return Ruleset()
        return folder.repository.rules(content, label)

    def _not_scanned(self, folder: Folder, error: OSError) -> None:
        shown = os.fsdecode(folder.at)
        if not folder.at:
            raise SpecError("root", str(self._root), f"cannot be read ({error.strerror})") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            self.found.warnings.append(f"{shown} vanished during the walk: nothing of it goes")
        elif folder.mode not in _QUIET:
            self.found.excluded.append((folder.at, f"cannot be read ({error.strerror})"))
            self.found.warnings.append(
                f"{shown} cannot be read ({error.strerror}): nothing of it goes; `chmod u+rx` it, or name it in exclude"
            )

    def judge(self, folder: Folder, name: bytes, is_folder: bool) -> Verdict | None:
        """Whether a name in a folder goes, and why; None for what belongs to git itself."""
        if name == _GIT or (self._ignore_case and name.lower() == _GIT):
            return None
        at, mode = folder.at, folder.mode
        reached = is_folder and self._reaching.rule(at, name, True) is not None
        cache = self._caches.rule(at, name, is_folder)
        rule = self._user.rule(at, name, is_folder)
        if rule is not None and not rule.negated:
            if rule.source == "exclude":
                return Verdict(False, f"{rule}", Mode.NOTHING if reached else None)
            return Verdict(True, f"{rule}", Mode.WHOLE_WITH_CACHES if cache else Mode.WHOLE)
        if mode is Mode.NOTHING:
            return Verdict(False, folder.reason, Mode.NOTHING if reached else None)
        if mode is Mode.WHOLE_WITH_CACHES or (mode is Mode.WHOLE and cache is None):
            return Verdict(True, folder.reason, mode)
        if mode is not Mode.WHOLE:
            rule = folder.ours.rule(at, name, is_folder)
            if rule is not None and not rule.negated:
                return Verdict(False, f"{rule}", Mode.NOTHING if reached else None)
            if rule is not None and mode is Mode.NORMAL:
                return Verdict(True, f"{rule}", Mode.NORMAL)
        return self._git_verdict(folder, name, is_folder, reached)

    def _git_verdict(self, folder: Folder, name: bytes, is_folder: bool, reached: bool) -> Verdict:
        repository, inside = folder.repository, folder.in_repository
        against, in_words = "", "no rule speaks of it"
        if folder.mode is Mode.TRACKED:
            against = folder.reason
        elif folder.mode is Mode.NORMAL:
            rule = folder.git.rule(inside, name, is_folder)
            if rule is not None:
                against, in_words = ("", f"{rule}") if rule.negated else (f"{rule}", "")
        if not against and (cache := self._caches.rule(folder.at, name, is_folder)):
            against = f"skip_caches: {os.fsdecode(cache.text)}, an untracked cache"
        if not against:
            return Verdict(True, in_words, folder.mode)
        index = repository.readable_index
        if index is None:
            return Verdict(False, against, Mode.TRACKED if reached else None)
        if not is_folder:
            tracked = index.tracks_file(inside + name)
            return Verdict(tracked, f"tracked by git, which wins over {against}" if tracked else against)
        if index.is_submodule(inside + name):
            return Verdict(True, f"a submodule, which wins over {against}", Mode.NORMAL)
        enter = reached or index.tracks_folder(inside + name)
        return Verdict(False, against, Mode.TRACKED if enter else None)

    def _sieve(self, folder: Folder) -> Sieve | None:
        """What lets the names pass that no rule can be about; None where every name has to be judged."""
        if folder.mode is not Mode.NORMAL or folder.repository.ignore_case != self._ignore_case:
            return None
        at = folder.at
        heres = [chain.here(at) for chain in self._own]
        if folder.git:
            heres.append(folder.git.here(folder.in_repository))
        if folder.ours:
            heres.append(folder.ours.here(at))
        key = tuple(heres)
        sieve = self._sieves.get(key)
        if sieve is None:
            sieve = self._sieves[key] = Sieve(heres, self._ignore_case)
        return sieve


def _lies_in(folder: bytes, name: bytes) -> bool:
    return os.path.lexists(os.path.join(folder, name))


def _kind(path: bytes) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "no file"
    for test, kind in (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return kind
    return "no file"
