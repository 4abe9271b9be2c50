"""What a command starts: the calls that it makes in the sandbox, and the programs behind them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import posixpath
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from skyrl_modal.bubblewrap import find_bubblewrap
from skyrl_modal.dataclass import replace
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache
from skyrl_modal.protocol.codec import ProtocolError, from_json, to_json
from skyrl_modal.skyrl.resolution.command_text import parse_calls
from skyrl_modal.skyrl.resolution.main_modules import ENTRYPOINT_MODULES, MainModule, ReadSource, read_main
from skyrl_modal.skyrl.resolution.programs import PythonProgram, flatten, python_program
from skyrl_modal.skyrl.resolution.records import (
    Call,
    EndOfExecution,
    EntrypointKind,
    Recording,
    Resolution,
    ResolutionMethod,
    Start,
)
from skyrl_modal.skyrl.resolution.sandbox import SandboxError, SandboxInput, execute
from skyrl_modal.skyrl.resolution.script_tree import MountedFiles, create_tree, tree_key
from skyrl_modal.skyrl.scripts import may_start_python, scripts_of_command

#: A change of the sandbox or the stubs makes earlier recordings useless.
_VERSION = 1
#: What only a shell evaluates.
_NEEDS_SHELL = re.compile(r"[$`*?\[{<>]|\b(?:for|while|until|if|case|function|eval|source)\b|sh\s+(?:-\w+\s+)*-\w*c\b")
#: What a script that starts an entrypoint of SkyRL contains. A main of the user's own is found by its imports.
_MENTIONS_SKYRL = re.compile(r"skyrl|trainer\.|train_data|main_\w+")
_MAX_SOURCE_BYTES = 1 << 20
#: The argument with which ``main_base`` imports another module, and calls its ``main``.
_REPLACED_BY = "trainer.override_entrypoint"
#: Where the files of the sandbox are created: in memory, which is ten times as fast as a disk; else in TMPDIR.
_TEMPORARY_FOLDERS = ("/dev/shm", None)


@frozen(kw_only=True)
class ResolvedRun:
    """What a resolution depends on, besides the command.

    Attributes:
        workdir: The folder in the container that the command runs in.
        env: The variables that the command has. Secrets have a placeholder as their value.
        mounts: The mounted files.
        repo_root: Path of the checkout in the container; None if none is mounted.
        folders: Further folders in the container, such as those of volumes.
        gpus: The number of GPUs of a node.
        gpu_name: Their name.
        cache: Recordings of earlier executions, by the content of everything that they depend on.
    """

    workdir: str
    env: Mapping[str, str]
    mounts: Sequence[MountedFiles]
    repo_root: str | None = None
    folders: Sequence[str] = field(default=())
    gpus: int = 0
    gpu_name: str = "GPU"
    cache: ResultCache = NO_CACHE


def resolve(command: str, run: ResolvedRun) -> Resolution:
    """Return the Python programs that a command starts, with their arguments and environments.

    A command that runs a shell script is executed in a sandbox with programs that only record their arguments. If there
    is no bubblewrap that works, the text is read instead.

    Args:
        command: A shell string.
        run: What it depends on.

    Example:
        >>> run = ResolvedRun(workdir="/root/SkyRL", env={}, mounts=[])
        >>> [start.overrides for start in resolve("python -m skyrl.train.main_sft seed=1 seed=2", run).starts]
        [{'seed': '2'}]
    """
    recording = _record(command, run)
    starts = [start for call in recording.calls if (start := _start_of(call, run, recording)) is not None]
    return Resolution(starts=tuple(starts), recording=recording)


def _record(command: str, run: ResolvedRun) -> Recording:
    texts = [command, *_script_texts(command, run)]
    if not may_start_python(texts):
        return Recording()
    parsed = parse_calls(texts, run.workdir, run.env)
    if len(texts) == 1 and not _NEEDS_SHELL.search(command):
        return replace(parsed, method=ResolutionMethod.LITERAL)
    if not any(_MENTIONS_SKYRL.search(text) for text in texts) and not _starts_entrypoint(parsed, run):
        return parsed
    name = _name_of_recording(command, run)
    recording = _load(run.cache, name)
    if recording is None:
        recording = _execute(command, run)
        if recording is None:
            return parsed
        if recording.end is EndOfExecution.EXITED:  # otherwise a slow machine may be the reason
            run.cache.save(name, to_json(recording).encode())
    return recording


def _name_of_recording(command: str, run: ResolvedRun) -> str:
    settings = [_VERSION, command, run.workdir, run.gpus, run.gpu_name, sorted(run.folders), sorted(run.env.items())]
    digest = hashlib.sha256(json.dumps(settings).encode() + tree_key(run.mounts))
    return f"calls of a command {digest.hexdigest()}"


def _load(cache: ResultCache, name: str) -> Recording | None:
    content = cache.load(name)
    try:
        return None if content is None else from_json(Recording, content)
    except ProtocolError:  # of a newer version
        return None


def _starts_entrypoint(recording: Recording, run: ResolvedRun) -> bool:
    starts = (_start_of(call, run, recording) for call in recording.calls)
    return any(start is not None and start.kind is not EntrypointKind.OTHER for start in starts)


def _script_texts(command: str, run: ResolvedRun) -> list[str]:
    return [
        text
        for mount in run.mounts
        for _, text in scripts_of_command(
            command,
            workdir=run.workdir,
            remote_path=mount.remote_path,
            root=mount.root,
            files=frozenset(mount.files),
        )
    ]


def _execute(command: str, run: ResolvedRun) -> Recording | None:
    """Execute a command in the sandbox; None if there is none that works."""
    if sys.platform != "linux":
        return None
    for binary, overlays, parent in itertools.product(find_bubblewrap(), (True, False), _TEMPORARY_FOLDERS):
        with (
            contextlib.suppress(SandboxError, OSError),
            tempfile.TemporaryDirectory(prefix="skyrl-modal-", dir=parent) as name,
        ):
            trees = {}
            for number, mount in enumerate(run.mounts):
                trees[mount.remote_path] = tree = Path(name) / str(number)
                tree.mkdir()
                create_tree(mount, tree)
            given = SandboxInput(
                command=command,
                workdir=run.workdir,
                env=run.env,
                trees=trees,
                folders=run.folders,
                gpus=run.gpus,
                gpu_name=run.gpu_name,
            )
            return execute(binary, given, parent, overlays=overlays)
    return None


def _start_of(call: Call, run: ResolvedRun, recording: Recording) -> Start | None:
    program = python_program(call.argv)
    if program is None:
        return None
    main = _read_main(program, call, run)
    flags = program.flags()
    overrides = program.overrides()
    if main.kind is EntrypointKind.TINKER:
        overrides = _backend_config(flags.get("backend-config", ""))
    unknown = [word.partition("=") for word in call.unknown]
    return Start(
        kind=main.kind,
        program=program.name,
        overrides=overrides,
        flags=flags,
        env=call.env,
        cwd=call.cwd,
        extras=program.extras,
        env_files=program.env_files,
        uses_uv=program.uses_uv,
        has_own_config=main.has_own_config,
        writes_results=main.writes_results,
        has_own_placement=main.has_own_placement,
        unknown_keys=tuple(key for key, equals, _ in unknown if equals),
        is_partial=any(not equals for _, equals, _ in unknown),
        method=recording.method,
    )


def _backend_config(text: str) -> dict[str, str]:
    """Return the configuration of a Tinker server's backend, whose keys are those of SkyRLTrainConfig."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    items = flatten(value) if isinstance(value, dict) else {}
    return {key: item if isinstance(item, str) else json.dumps(item) for key, item in items.items()}


def _read_main(program: PythonProgram, call: Call, run: ResolvedRun) -> MainModule:
    name, is_module = program.name, program.is_module
    replacement = program.overrides().get(_REPLACED_BY)
    if replacement and ENTRYPOINT_MODULES.get(name) is EntrypointKind.TRAIN:
        name = replacement
    if is_module and name in ENTRYPOINT_MODULES:
        return MainModule(ENTRYPOINT_MODULES[name])
    file = f"{name.replace('.', '/')}.py" if is_module else name
    folders = [call.cwd, *call.env.get("PYTHONPATH", "").split(":"), run.repo_root or "/"]
    for mount in run.mounts:
        for folder in folders if is_module else folders[:1]:
            path = posixpath.relpath(posixpath.join("/", folder, file), mount.remote_path)
            read = _reader(mount)
            if not path.startswith("../") and read(path) is not None:
                return read_main(path, read)
    return MainModule(EntrypointKind.OTHER)


def _reader(mount: MountedFiles) -> ReadSource:
    files = frozenset(mount.files)

    def read(path: str) -> str | None:
        if posixpath.normpath(path) not in files:
            return None
        with contextlib.suppress(OSError):
            return read_regular_file(mount.root / path, max_bytes=_MAX_SOURCE_BYTES).decode("utf-8", "replace")
        return None

    return read
