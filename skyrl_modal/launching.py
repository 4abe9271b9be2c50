"""What the methods of ``Launcher`` do: joins preparation, backends and runs.

Each function does what the method of the same name documents. ``Launcher`` translates errors of the system.

What makes plans, and what follows a run, is imported in the functions that need it: a backend can start the processes
of a run before these imports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from skyrl_modal.backends import Backend, get_backend, rates_of_plan, rates_of_run, run_check
from skyrl_modal.declaration import evolve, fields, frozen
from skyrl_modal.errors import BackendUnavailable, SkyRLModalError, SpecError, StorageError, translate_system_errors
from skyrl_modal.prepare.command import normalize_command, shorten_command
from skyrl_modal.prepare.expected_run import expect_run
from skyrl_modal.prepare.user_cache import result_cache
from skyrl_modal.protocol.run_id import new_run_id
from skyrl_modal.reporting import NullReporter, NullRunTable, PlainDisplay, Reporter, WaitDisplay, with_log
from skyrl_modal.run.interrupts import Interrupts, catch_interrupts
from skyrl_modal.run.output_sink import OutputTarget, ParallelOutput, open_sink
from skyrl_modal.spec.fields import check_whole_number
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.user_folders import cache_folder
from skyrl_modal.views.text import StderrReporter

if TYPE_CHECKING:
    from skyrl_modal.backends import FindRates, RunCheck
    from skyrl_modal.backends.base import PreparedRun
    from skyrl_modal.findings import Finding
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.prepare.plan import Plan
    from skyrl_modal.prepare.staging import Preparation
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.result import RunResult
    from skyrl_modal.views.table import LiveRunTable
    from skyrl_modal.views.waiting import WaitingDisplay

#: The number of the caller's frame, for warnings: a function, the method that calls it, and its decorator are between.
_STACK_LEVEL = 4


@frozen
class StartOptions:
    """What a caller requests about the start of a run, and what it receives while it runs.

    Attributes:
        strict: Whether to refuse a command with a finding that is an error.
        fix: Whether to append the overrides that remove findings.
        verbose: Whether to report each phase of the start, and all lines of long steps.
        on_event: Receives messages, changes of state and the result of a run; None for nothing.
    """

    strict: bool = False
    fix: bool = False
    verbose: bool = False
    on_event: Callable[[Run, RunEvent], None] | None = None


def backend_of(launcher: Launcher) -> Backend:
    """Return the backend of a launcher."""
    return get_backend(launcher.backend) if isinstance(launcher.backend, str) else launcher.backend


def run(
    launcher: Launcher, command: str | Sequence[str], output: OutputTarget, *, quiet: bool, options: StartOptions
) -> RunResult:
    """Run a command to its end."""
    with catch_interrupts() as interrupts:
        result = _run(launcher, command, output, quiet=quiet, options=options, interrupts=interrupts)
    interrupts.raise_if_recorded()
    return result


def _run(
    launcher: Launcher,
    command: str | Sequence[str],
    output: OutputTarget,
    *,
    quiet: bool,
    options: StartOptions,
    interrupts: Interrupts,
    is_awaited: bool = False,
) -> RunResult:
    reporter = with_log(NullReporter() if quiet else StderrReporter())
    open_sink(output)  # refuses an invalid target before anything starts
    # Several runs may be awaited, whose output has one terminal.
    may_be_live = not quiet and not is_awaited
    with open_display(reporter, may_be_live=may_be_live, is_verbose=options.verbose) as display:
        run = _start(
            launcher, command, owned=True, reporter=display, options=options, display=display, interrupts=interrupts
        )
        from skyrl_modal.run.foreground import stream_to_end

        on_event = None if options.on_event is None else partial(options.on_event, run)
        if output is None and is_awaited:
            with ParallelOutput(run.job.name or run.id, reporter) as prefixing:
                return stream_to_end(run, prefixing, reporter, interrupts, on_event, display)
        return stream_to_end(run, output, reporter, interrupts, on_event, display)


def open_display(
    reporter: Reporter, *, may_be_live: bool = True, is_verbose: bool = False
) -> WaitingDisplay | PlainDisplay:
    """Return what displays the start of a run, for a ``with`` statement. It passes messages on to the reporter."""
    if isinstance(reporter, NullReporter):
        return PlainDisplay(reporter)
    from skyrl_modal.views.waiting import WaitingDisplay  # imported here, since a quiet run does not need it

    return WaitingDisplay(reporter, may_be_live=may_be_live, is_verbose=is_verbose)


async def arun(
    launcher: Launcher, command: str | Sequence[str], output: OutputTarget, *, quiet: bool, options: StartOptions
) -> RunResult:
    """Run a command to its end, awaitable."""
    import asyncio  # imported here, since most callers do not use it

    interrupts = Interrupts()

    def run_or_none() -> RunResult | None:
        """Return the result; None if the task was cancelled before the run started."""
        try:
            return _run(launcher, command, output, quiet=quiet, options=options, interrupts=interrupts, is_awaited=True)
        except KeyboardInterrupt:
            return None

    work = asyncio.ensure_future(asyncio.to_thread(run_or_none))
    try:
        result = await asyncio.shield(work)
    except asyncio.CancelledError:
        interrupts.record()
        try:
            await work
        except asyncio.CancelledError:  # a second one kills the run; a callback that blocks is not waited for
            interrupts.record()
        raise
    if result is None:
        raise asyncio.CancelledError
    return result


def submit(
    launcher: Launcher, command: str | Sequence[str], *, options: StartOptions, display: WaitDisplay | None = None
) -> Run:
    """Start a command that continues after this process has exited. The display shows what the start waits for."""
    return _start(launcher, command, owned=False, reporter=NullReporter(), options=options, display=display)


def map_runs(
    pairs: Sequence[tuple[Launcher, str | Sequence[str]]],
    *,
    max_parallel: int | None,
    names: Sequence[str] | None,
    quiet: bool,
    options: StartOptions,
) -> list[RunResult]:
    """Run several commands, each with its launcher, of which a limited number run at the same time."""
    runs = [(launcher, normalize_command(command)) for launcher, command in pairs]
    labels = [text for _, text in runs] if names is None else list(names)
    if len(labels) != len(runs):
        raise SpecError("names", labels, f"pass one name for each command ({len(runs)})")
    backends = [backend_of(launcher) for launcher, _ in runs]
    if max_parallel is None:
        max_parallel = 2 if any(backend.name == "local" for backend in backends) else 50
    check_whole_number("max_parallel", max_parallel, minimum=1)
    if not runs:
        return []
    from skyrl_modal.run.batch import Batch, BatchRun

    with ExitStack() as stack:
        preparations = _prepare_all(runs, stack, options)
        items = [
            BatchRun(partial(_start_prepared, launcher, text, options, preparation), backend.name)
            for (launcher, text), preparation, backend in zip(runs, preparations, backends, strict=True)
        ]
        with NullRunTable() if quiet else _live_table(labels) as table:
            return Batch(items, max_parallel=max_parallel, table=table, on_event=options.on_event).run()


def _prepare_all(
    runs: Sequence[tuple[Launcher, str]], stack: ExitStack, options: StartOptions
) -> Sequence[Preparation]:
    """Return the preparation of each run; equal launchers share one. Raise the errors that prevent a start."""
    from skyrl_modal.prepare.staging import refuse_errors

    shared: list[tuple[Launcher, Preparation]] = []
    prepared = []
    for launcher, text in runs:
        preparation = next((known for other, known in shared if other == launcher), None)
        is_new = preparation is None
        if preparation is None:
            preparation = stack.enter_context(_prepare(launcher, rates_of_run(backend_of(launcher))))
            shared.append((launcher, preparation))
        if is_new or options.strict:  # the first plan raises errors in the launcher's fields
            plan = preparation.plan(text)
            if options.strict:
                refuse_errors(_fixed(plan, preparation) if options.fix else plan)
        prepared.append(preparation)
    return prepared


def _start_prepared(
    launcher: Launcher, command: str, options: StartOptions, preparation: Preparation, reporter: Reporter
) -> Run:
    return _start(launcher, command, owned=True, reporter=reporter, options=options, shared=preparation)


def _live_table(labels: Sequence[str]) -> LiveRunTable:
    from skyrl_modal.views.table import LiveRunTable  # imported here, since only this needs rich

    return LiveRunTable(labels)


def plan(launcher: Launcher, command: str | Sequence[str], *, check: bool) -> Plan:
    """Return what a run would do."""
    from skyrl_modal.prepare.findings import unavailable_finding
    from skyrl_modal.prepare.staging import check_plan

    text = normalize_command(command)
    further: list[Finding] = []
    backend = None
    if check:
        # A backend that cannot execute any run now is a finding: a plan can be made.
        try:
            backend = backend_of(launcher)
        except BackendUnavailable as error:
            further.append(unavailable_finding(error))
    preparation = _prepare(launcher, rates_of_plan(launcher.backend) if backend is None else rates_of_run(backend))

    def check_run(job: Job, spec: RunSpec) -> Sequence[str]:
        """Check a run. The whole check of Modal's backend needs its client."""
        try:
            if backend is None:
                return run_check(launcher.backend)(job, spec)
            warnings = backend.check(job, spec)
            check_objects: RunCheck | None = getattr(backend, "check_objects", None)
            return warnings if check_objects is None else [*warnings, *check_objects(job, spec)]
        except BackendUnavailable as error:
            further[:] = [unavailable_finding(error)]
            return ()

    if backend is not None:
        from skyrl_modal.plan_checks import check_state  # imported here, since a run does not need it

        made = preparation.plan(text, check_state(backend, launcher.volumes, text))
    else:
        made = preparation.plan(text)
    checked, _ = check_plan(made, check_run)
    if backend is not None and made.job.resume is not None:
        from skyrl_modal.prepare.resume_check import find_resume_problems

        further += find_resume_problems(made, backend)
    return evolve(checked, findings=(*checked.findings, *further))


@translate_system_errors()
def _prepare(launcher: Launcher, find_rates: FindRates | None) -> Preparation:
    """Prepare runs, as far as they do not depend on their commands."""
    from skyrl_modal.prepare.staging import Preparation

    backend = launcher.backend if isinstance(launcher.backend, str) else launcher.backend.name
    return Preparation(launcher, backend, find_rates)


@translate_system_errors()
def _start(
    launcher: Launcher,
    command: str | Sequence[str],
    *,
    owned: bool,
    reporter: Reporter,
    options: StartOptions,
    display: WaitDisplay | None = None,
    interrupts: Interrupts | None = None,
    shared: Preparation | None = None,
) -> Run:
    """Start a run, with what was prepared for several ones, or on its own.

    Raises:
        KeyboardInterrupt: An interrupt was recorded before files were copied.
    """
    display = PlainDisplay(reporter) if display is None else display
    display.begin("reading the checkout")
    text, backend, run_id = normalize_command(command), backend_of(launcher), new_run_id()
    with ExitStack() as stack:
        if shared is None:
            stack.enter_context(_prepare_check(backend))
            stack.enter_context(_prepare_start(launcher, backend, run_id) if owned else nullcontext())
            shared = stack.enter_context(_prepare(launcher, rates_of_run(backend)))
        from skyrl_modal.prepare.staging import check_plan, refuse_errors, report_plan
        from skyrl_modal.run.half_written import remove_half_written
        from skyrl_modal.run.handle import Run

        plan = shared.plan(text, run_id=run_id)
        if options.fix:
            plan = _fixed(plan, shared)
        plan, secret_values = check_plan(plan, backend.check)
        if options.strict:
            refuse_errors(plan)
        if plan.job.resume is not None:
            from skyrl_modal.prepare.resume_check import refuse_resume  # imported here, since most runs do not need it

            display.begin("checking the checkpoint folder")
            refuse_resume(plan, backend)
        title = f"run {plan.job.run_id}: {shorten_command(plan.job.command)}"
        report_plan(plan, backend, reporter, secret_values, title=title)
        if interrupts is not None:
            interrupts.raise_if_recorded()
        remove_half_written()
        display.begin("copying the selected files")
        prepared = shared.take_snapshots(plan, secret_values, reporter)
        display.begin("starting the container")
        execution = backend.start(prepared, owned=owned)
        display.watch(execution)
    if not owned:
        execution.wait_started()
    shown = [finding for finding in plan.findings if finding.severity != "note"]
    run = Run(prepared.job, backend.name, execution, stored_spec=plan.stored_spec, findings=shown)
    try:
        run._save_to_index()
    except SkyRLModalError as error:
        if not owned:  # no other process could stop it or read its output
            run.cancel()
            raise
        reporter.warn(f"this run cannot be attached to from another process: {error}")
    return run


def _fixed(plan: Plan, preparation: Preparation) -> Plan:
    """Return the plan of a command with the overrides that remove findings, and findings about those without effect."""
    fix = plan.fix
    made = preparation.plan(fix.command, run_id=plan.job.run_id) if fix.overrides else plan
    return evolve(made, findings=(*made.findings, *fix.findings))


def _prepare_check(backend: Backend) -> AbstractContextManager[object]:
    """Return what starts the check of a backend, for a ``with`` statement."""
    prepare: Callable[[], AbstractContextManager[object]] = getattr(backend, "prepare_check", nullcontext)
    return prepare()


def _prepare_start(launcher: Launcher, backend: Backend, run_id: str) -> AbstractContextManager[object]:
    """Return what starts the run that is expected, for a ``with`` statement."""
    prepare: Callable[[PreparedRun], AbstractContextManager[object]] | None = getattr(backend, "prepare_start", None)
    if prepare is None:
        return nullcontext()
    expected = None
    with suppress(StorageError):
        expected = expect_run(launcher, run_id, result_cache(), cache_folder() / "snapshots")
    return nullcontext() if expected is None else prepare(expected)


def from_run(cls: type[Launcher], run_id: str) -> tuple[Launcher, str]:
    """Return the launcher and the command of a run that was started from this machine."""
    from skyrl_modal.prepare.restore import changes_since  # imported here, since a new run does not need it
    from skyrl_modal.run.index import RunIndex

    record = RunIndex().find(run_id)
    spec = record.read_spec()
    declared = {item.name: getattr(spec, item.name) for item in fields(RunSpec)}
    launcher = cls(**declared, backend=record.backend)
    for change in changes_since(record.job, launcher):
        warnings.warn(f"run {run_id}: {change}", stacklevel=_STACK_LEVEL)
    return launcher, record.job.command
