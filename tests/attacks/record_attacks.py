"""Attacks of someone who can write to the volume with the records of the user's runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.attacks.attack import Attack, Machine
from tests.attacks.special_files import KINDS, place

WRITER = "writer to a shared volume"
ESCAPE = "\x1b]0;owned\x07"


def _result(**fields: object) -> bytes:
    record = {"run_id": "x", "state": "failed", "returncode": 1, "attempts": 1, "started_at": "", "duration": 1.0}
    return json.dumps({**record, **fields}).encode()


class DamagedRecords(Attack):
    """Damaged records of one run."""

    actor, promise = WRITER, "other runs are listed; every command ends with one sentence"
    _CONTENTS: ClassVar = {
        "empty": b"",
        "truncated": b'{"run_id": "',
        "list": b"[]",
        "null": b"null",
        "nested": b"[" * 100_000,
        "huge number": b'{"returncode": ' + b"9" * 5000 + b"}",
        "unknown state": _result(state="?"),
        "not a number": _result(returncode=float("nan"), duration=float("inf")),
    }

    def members(self) -> Sequence[str]:
        return [
            f"{name}: {kind}"
            for name in ("result.json", "state.json", "job.json", "output.log", "index entry")
            for kind in (*self._CONTENTS, *KINDS)
        ]

    def setup(self, machine: Machine, member: str) -> None:
        name, kind = member.split(": ")
        outcomes = [machine.run(f"echo {name}", "--name", name) for name in ("first", "second")]
        if [outcome.returncode for outcome in outcomes] != [0, 0]:
            raise RuntimeError(f"the runs of the setup failed: {outcomes}")
        [first, _] = machine.run_folders()
        self._id = first.name
        index = machine.home / "state" / "skyrl_modal" / "index"
        path = index / f"{first.name}.json" if name == "index entry" else first / name
        if kind in self._CONTENTS:
            path.write_bytes(self._CONTENTS[kind])
        else:
            place(path, kind)

    def act(self, machine: Machine, member: str) -> str:
        outcome = machine.call("ps")
        if "second" not in outcome.text or outcome.returncode != 0:
            return f"ps: {outcome.problem or outcome.text}"
        # The whole log of 10 GB is output like any other: printing it takes longer than the time limit.
        whole = [] if member == "output.log: 10 GB" else [("logs", self._id)]
        for arguments in (*whole, ("logs", "--tail", "5", self._id)):
            if problem := machine.call(*arguments).problem:
                return f"{arguments}: {problem}"
        return outcome.problem


class TerminalSequences(Attack):
    """Terminal sequences in records and names of files."""

    actor, promise = WRITER, "control characters are escaped"

    def members(self) -> Sequence[str]:
        return ["name", "detail", "command", "run_id", "file"]

    def setup(self, machine: Machine, member: str) -> None:
        machine.run("echo first", "--name", "first")
        [folder] = machine.run_folders()
        self._id = folder.name
        index = machine.home / "state" / "skyrl_modal" / "index" / f"{folder.name}.json"
        if member in ("name", "command"):
            record = json.loads(index.read_text())
            record["job"][member] = ESCAPE
            index.write_text(json.dumps(record))
        elif member == "file":
            (machine.volume / f"{ESCAPE}.txt").write_text("")
            (machine.checkout / f"{ESCAPE}.py").write_text("")
        else:
            path = folder / "result.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), member: ESCAPE, "state": "failed"}))

    def act(self, machine: Machine, member: str) -> str:
        for arguments in (("ps",), ("logs", self._id), ("ls",), ("plan", "--no-ray", "true")):
            outcome = machine.call(*arguments)
            if "\x1b]0;" in outcome.text:
                return f"{arguments} prints the sequence"
            if outcome.problem:
                return f"{arguments}: {outcome.problem}"
        return ""


class EscapingLinks(Attack):
    """Links on a volume that lead out of it."""

    actor, promise = WRITER, "pull and push read and write nothing outside of the volume and of the target"

    def members(self) -> Sequence[str]:
        return [
            f"{action} {kind}"
            for action in ("pull", "push", "ls")
            for kind in ("absolute link", "relative link", "link to a folder", "..", "link to itself")
        ]

    def setup(self, machine: Machine, member: str) -> None:
        machine.run("true")
        outside = machine.folder / "outside"
        outside.mkdir()
        (outside / "private").write_text("private content")
        kind = member.partition(" ")[2]
        link = machine.volume / "link"
        if kind == "absolute link":
            link.symlink_to(outside / "private")
        elif kind == "relative link":
            link.symlink_to(os.path.relpath(outside / "private", machine.volume))
        elif kind == "link to a folder":
            link.symlink_to(outside)
        elif kind == "link to itself":
            link.symlink_to("link")
        (machine.folder / "pushed").write_text("pushed content")

    def act(self, machine: Machine, member: str) -> str:
        action, _, kind = member.partition(" ")
        outside = machine.folder / "outside"
        path = "/root/data/link/private" if kind == "link to a folder" else "/root/data/link"
        if kind == "..":
            path = f"/root/data/{os.path.relpath(outside / 'private', machine.volume)}"
        target = machine.folder / "pulled"
        arguments = {"pull": (path, str(target)), "push": (str(machine.folder / "pushed"), path), "ls": (path,)}[action]
        outcome = machine.call(action, *arguments)
        if target.exists() and not target.is_symlink() and _contains(target, "private content"):
            return "content outside of the volume was read"
        if (outside / "private").read_text() != "private content" or sorted(os.listdir(outside)) != ["private"]:
            return "a file outside of the volume was written"
        if action == "ls" and outcome.returncode == 0 and "private" in outcome.text and kind in ("link to a folder",):
            return "a folder outside of the volume was listed"
        return outcome.problem


def _contains(path: Path, text: str) -> bool:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return any(text in file.read_text(errors="replace") for file in files)
