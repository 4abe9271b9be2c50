"""``skyrl_modal.map``: several commands with different launchers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyrl_modal.errors import SpecError
from skyrl_modal.launcher import Launcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skyrl_modal.launcher import OnEvent
    from skyrl_modal.run.result import RunResult


def map(  # noqa: A001  # it is used as skyrl_modal.map, and named as Launcher.map
    runs: Sequence[tuple[Launcher, str | Sequence[str]]],
    *,
    max_parallel: int | None = None,
    names: Sequence[str] | None = None,
    quiet: bool = False,
    strict: bool = False,
    fix: bool = False,
    on_event: OnEvent | None = None,
) -> list[RunResult]:
    """Run several commands, each with its own launcher, of which a limited number run at the same time.

    It is ``Launcher.map`` for launchers that differ, for example in ``gpu``, ``env`` or ``backend``. All launchers are
    checked before anything starts. Files are selected and copied once for each launcher; equal ones share the copy.

    Args:
        runs: Pairs of a launcher and a command, as ``Launcher.run`` accepts it. The output of each run is stored in
            its output.log.
        max_parallel: Number of runs that may be active at the same time; None: 2 if one is on this machine, else 50.
        names: Names of the runs in the table; None: the names of the launchers and the commands.
        quiet: Whether to suppress the table.
        strict: Whether to start nothing if a command has a finding that is an error.
        fix: As in ``Launcher.run``, for each command.
        on_event: As in ``Launcher.run``, for each command. Called in a thread for each run.

    Returns:
        A result for each pair, in their order. A command that could not be started has the exit code 125.

    Raises:
        SpecError: A declared value is invalid, or a finding is an error with ``strict``. Nothing was started.
        CheckoutNotFound: There is no checkout. Nothing was started.
        KeyboardInterrupt: Ctrl-C was pressed. All runs have ended.

    Example:
        >>> import skyrl_modal
        >>> small = skyrl_modal.Launcher(backend="local", ray=None)  # doctest: +SKIP
        >>> large = skyrl_modal.Launcher(gpu="H100:8")  # doctest: +SKIP
        >>> [result.returncode for result in skyrl_modal.map([(small, "exit 1"), (large, "true")])]  # doctest: +SKIP
        [1, 0]
    """
    from skyrl_modal import launching
    from skyrl_modal.prepare.command import normalize_command

    pairs = []
    for pair in runs:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Launcher)
        if not is_pair:
            raise SpecError("runs", pair, 'pass pairs of a launcher and a command, such as [(launcher, "true")]')
        pairs.append((pair[0], normalize_command(pair[1])))
    if names is None:
        names = [f"{launcher.name}: {text}" if launcher.name else text for launcher, text in pairs]
    options = launching.StartOptions(strict=strict, fix=fix, on_event=on_event)
    return launching.map_runs(pairs, max_parallel=max_parallel, names=names, quiet=quiet, options=options)
