"""The records of a resolution: the calls of programs, and the entrypoints that they start."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.codec import TolerantStrEnum


class ResolutionMethod(TolerantStrEnum):
    """How the calls of a command were found."""

    #: The command was executed in a sandbox, in which uv, python and others only record their arguments.
    EXECUTED = "executed"
    #: The command contains nothing that only a shell evaluates, and was split.
    LITERAL = "literal"
    #: The text of a script was read. Values that depend on the shell are not known, and conditions are ignored.
    PARSED = "parsed"
    UNKNOWN = "unknown"


class EndOfExecution(TolerantStrEnum):
    """How the execution of a command in the sandbox ended."""

    EXITED = "exited"
    #: It was still running after the limit of time.
    TIMEOUT = "timeout"
    #: It had too many processes, or used too much memory.
    LIMIT = "limit"
    #: The sandbox could not be started, or the text was read only.
    NOT_EXECUTED = "not_executed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a program.

    Attributes:
        argv: Name and arguments.
        cwd: The folder in the container that it was called in.
        env: The variables that differ from those that the command was started with.
        is_background: Whether the shell did not wait for it.
        unknown: Arguments whose value is not known, since the text was read only.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    is_background: bool = False
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The calls of a command.

    Attributes:
        calls: The calls in their order.
        method: How they were found.
        end: How the execution ended.
        exit_code: The command's exit code; None if it did not exit by itself.
        last_line: The last line that it wrote to standard error.
    """

    calls: tuple[Call, ...] = ()
    method: ResolutionMethod = ResolutionMethod.PARSED
    end: EndOfExecution = EndOfExecution.NOT_EXECUTED
    exit_code: int | None = None
    last_line: str = ""


class EntrypointKind(StrEnum):
    """What an entrypoint does. A main of the checkout that builds on one of these has its kind."""

    #: Training with reinforcement learning (``main_base``).
    TRAIN = "train"
    #: Training in which generation continues meanwhile.
    FULLY_ASYNC = "fully_async"
    #: An evaluation without training (``main_generate``).
    GENERATE = "generate"
    #: Supervised fine-tuning. Its keys have no ``trainer.`` prefix.
    SFT = "sft"
    #: The server of the Tinker API.
    TINKER = "tinker"
    #: Inference servers.
    SERVE = "serve"
    #: A script that prepares data.
    DATASET = "dataset"
    #: Another program.
    OTHER = "other"


#: The kinds with the configuration of ``SkyRLTrainConfig``.
TRAIN_CONFIG_KINDS = frozenset(
    {EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC, EntrypointKind.GENERATE, EntrypointKind.SERVE}
)
#: The kinds that train.
TRAINING_KINDS = frozenset({EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC, EntrypointKind.SFT})
#: The kinds that log metrics with SkyRL's tracker.
KINDS_WITH_TRACKER = TRAINING_KINDS | {EntrypointKind.GENERATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a Python program by the command.

    Attributes:
        kind: What the program does.
        program: Its module, as ``skyrl.train.entrypoints.main_base``, or its path in the container.
        overrides: Its ``key=value`` arguments. The last one of a key wins, as in SkyRL. A server of Tinker has those of
            its ``--backend-config``.
        flags: Its ``--name value`` arguments; the value is empty for a flag without one.
        env: The variables that the command sets for it.
        cwd: The folder in the container that it starts in.
        extras: The extras that ``uv run`` installs.
        env_files: The files of ``uv run --env-file``.
        uses_uv: Whether it is started by uv.
        has_own_config: Whether it extends the configuration of its kind, so that further keys are valid.
        writes_results: Whether its training loop writes checkpoints and evaluations.
        has_own_placement: Whether the GPUs that it needs are not those of its configuration.
        unknown_keys: The keys whose value is not known.
        is_partial: Whether it may have further arguments.
        method: How it was found.
    """

    kind: EntrypointKind
    program: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    extras: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    uses_uv: bool = False
    has_own_config: bool = False
    writes_results: bool = True
    has_own_placement: bool = False
    unknown_keys: tuple[str, ...] = ()
    is_partial: bool = False
    method: ResolutionMethod = ResolutionMethod.EXECUTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a command starts.

    Attributes:
        starts: The programs that it starts, in their order.
        recording: The calls that they were found in.
    """

    starts: tuple[Start, ...] = ()
    recording: Recording = Recording()

    @property
    def entrypoints(self) -> tuple[Start, ...]:
        """The starts of entrypoints of SkyRL."""
        return tuple(start for start in self.starts if start.kind is not EntrypointKind.OTHER)

    @property
    def unresolved(self) -> str:
        """Why it may not be complete, for people; empty if the command was executed to its end."""
        recording = self.recording
        match recording.end:
            case EndOfExecution.TIMEOUT:
                return "the command did not end in the sandbox within its time"
            case EndOfExecution.LIMIT:
                return "the command exceeded the limits of the sandbox"
            case EndOfExecution.EXITED if recording.exit_code:
                reason = f": {recording.last_line}" if recording.last_line else ""
                return f"the command ended in the sandbox with exit code {recording.exit_code}{reason}"
        return ""
