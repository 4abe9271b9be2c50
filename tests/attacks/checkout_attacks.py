"""Attacks of the author of a checkout on the user who plans a run of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar

from tests.attacks.attack import Attack, Machine
from tests.attacks.special_files import KINDS, place
from tests.gitfiles.test_git_safety import HOOKS, PROGRAM_KEYS
from tests.gitfiles.test_secret_search import KEYS

AUTHOR = "author of the checkout"


class ExecutedSettings(Attack):
    """Settings of git that name a program."""

    actor, promise = AUTHOR, "planning executes nothing of the checkout"

    def members(self) -> Sequence[str]:
        return [*PROGRAM_KEYS, *(f"hook {name}" for name in HOOKS), "git in the checkout"]

    def setup(self, machine: Machine, member: str) -> None:
        machine.commit()
        program = machine.folder / "program"
        program.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(machine.folder / 'executed'))}\n")
        program.chmod(0o755)
        (machine.checkout / ".gitattributes").write_text("* diff=marker merge=marker filter=marker\n")
        if member.startswith("hook "):
            hook = machine.checkout / ".git" / "hooks" / member.removeprefix("hook ")
            hook.parent.mkdir(exist_ok=True)
            hook.write_bytes(program.read_bytes())
            hook.chmod(0o755)
        elif member == "git in the checkout":
            (machine.checkout / "git").write_bytes(program.read_bytes())
            (machine.checkout / "git").chmod(0o755)
            machine.env["PATH"] = f".:{machine.env['PATH']}"
        else:
            machine.git("config", member, str(program))
        # A change of the same size, so that git has to read the file.
        (machine.checkout / "train.py").write_text("print('Training')\n")

    def act(self, machine: Machine, member: str) -> str:
        outcome = machine.plan()
        if (machine.folder / "executed").exists():
            return "the program was executed"
        return outcome.problem or ("" if outcome.returncode == 0 else outcome.text)


class BlockingFiles(Attack):
    """Special files in place of files that planning reads."""

    actor, promise = AUTHOR, "planning ends within its limits"
    _FILES = (
        *(".gitignore", ".skyrlignore", "pyproject.toml", ".env", "run.sh", ".git/config", ".git/index", ".git/HEAD"),
        *(".git/info/exclude", ".git/commondir", ".git/packed-refs", "skyrl-gym/.gitignore"),
    )

    def members(self) -> Sequence[str]:
        return [f"{name}: {kind}" for name in self._FILES for kind in KINDS]

    def setup(self, machine: Machine, member: str) -> None:
        name, kind = member.split(": ")
        machine.commit()
        place(machine.checkout / name, kind)

    def act(self, machine: Machine, member: str) -> str:
        return machine.call("plan", "--no-ray", "--gpu", "none", "--secret", "HOME", "bash run.sh").problem


class SlowPatterns(Attack):
    """Ignore files that are slow to match."""

    actor, promise = AUTHOR, "planning ends within its limits"
    _CONTENTS: ClassVar = {
        "200,000 lines": lambda: "".join(f"name-{number}.txt\n" for number in range(200_000)),
        "200,000 paths": lambda: "".join(f"/a/b/name-{number}/x\n" for number in range(200_000)),
        "1 MB line": lambda: "a" * 1_000_000 + "\n",
        "stars": lambda: "*a" * 200 + "b\n",
        "double stars": lambda: "**/a/" * 100 + "b\n",
        "classes": lambda: "[" + "[:alpha:]" * 20_000 + "]x\n",
    }

    def members(self) -> Sequence[str]:
        return list(self._CONTENTS)

    def setup(self, machine: Machine, member: str) -> None:
        (machine.checkout / ".gitignore").write_text(self._CONTENTS[member]())
        (machine.checkout / ("a" * 250)).write_text("")
        folder = machine.checkout.joinpath(*["a"] * 60)
        folder.mkdir(parents=True)
        (folder / "x").write_text("")

    def act(self, machine: Machine, member: str) -> str:
        return machine.plan().problem


class ForeignContent(Attack):
    """Content that is not of the expected form."""

    actor, promise = AUTHOR, "planning ends with a result or one sentence"
    _NAMES = (".git/config", ".git/index", ".git/HEAD", ".gitignore", "pyproject.toml", ".env")
    _CONTENTS: ClassVar = {
        "binary": b"\xff\xfe\0" * 1000,
        "brackets": b"[" * 100_000,
        "types": b"[project]\ndependencies = 5\n",
        "NUL": b"gitdir: a\0b",
    }

    def members(self) -> Sequence[str]:
        return [f"{name}: {kind}" for name in self._NAMES for kind in self._CONTENTS]

    def setup(self, machine: Machine, member: str) -> None:
        name, kind = member.split(": ")
        machine.commit()
        (machine.checkout / name).write_bytes(self._CONTENTS[kind])

    def act(self, machine: Machine, member: str) -> str:
        return machine.plan("--secret", "HOME").problem


class UnnoticedKeys(Attack):
    """Keys in files with harmless names."""

    actor, promise = "the user's own mistake", "the plan names file and line, and not the value"

    def members(self) -> Sequence[str]:
        return [f"{kind} {number}" for kind, texts in KEYS.items() for number in range(len(texts))]

    def setup(self, machine: Machine, member: str) -> None:
        (machine.checkout / "run.sh").write_text(f"#!/bin/bash\n{self._text(member)}\n")

    def act(self, machine: Machine, member: str) -> str:
        outcome = machine.plan()
        if "run.sh:2 contains" not in outcome.text and "run.sh:4 contains" not in outcome.text:
            return f"not found: {outcome.text}"
        shown = [part for part in self._text(member).split() if len(part) > 20 and part in outcome.text]
        return f"the value is shown: {shown}" if shown else outcome.problem

    @staticmethod
    def _text(member: str) -> str:
        kind, _, number = member.rpartition(" ")
        return KEYS[kind][int(number)]
