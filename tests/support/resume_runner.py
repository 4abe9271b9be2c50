"""Makes the runs of the campaign of kills: a training, its kills, and the checks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from skyrl_modal import Launcher, MountSpec, RaySpec, Run, RunResult, RunState, VolumeSpec
from skyrl_modal.run.index import RunIndex
from tests.support.loopback import LoopbackModal
from tests.support.moments import MomentServer
from tests.support.processes import MARK, marked_processes, wait_for_marked_processes
from tests.support.resume_campaign import INTERVAL, STEPS, Case, Finding, Kill, Moment, Target, check_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINER = EXAMPLES / "quickstart_trainer"
#: Seconds that a run, and a commit, may take on a busy machine.
RUN_TIMEOUT, COMMIT_TIMEOUT = 500.0, 60.0
#: Attempts without a new step that the cases need.
RETRIES = 2
#: W&B writes its files without an account. SkyRL requires a key.
_WANDB = {"WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40, "WANDB_SILENT": "true"}

Rows = Mapping[int, Mapping[str, float]]


class ResumeEnvironment:
    """A separate environment, in which one run after another is made.

    Args:
        folder: Folder for all files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._server: LoopbackModal | None = None
        self._expected: Rows | None = None
        self._checkout, self._sockets = Path(), Path()
        self._dataset = folder / "dataset"
        self._logger = "wandb" if find_spec("wandb") else "console"

    def __enter__(self) -> ResumeEnvironment:
        """Set the folders of the user, and make the dataset."""
        self._checkout = _quickstart_checkout()
        # Local runs have another /tmp.
        self._sockets = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="skyrl-", dir="/var/tmp")))
        self._sockets.chmod(0o755)
        self._stack.enter_context(_variables(_own_variables(self._folder)))
        command = [sys.executable, str(TRAINER / "prepare.py"), "--output-dir", str(self._dataset)]
        subprocess.run(command, check=True, capture_output=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the control plane, and restore the variables."""
        self._stack.close()

    @property
    def server(self) -> LoopbackModal:
        """The control plane; started at the first use."""
        if self._server is None:
            self._server = self._stack.enter_context(
                LoopbackModal(self._folder / "modal", scaledown=1, visible=[self._sockets], crashes_allowed=6)
            )
            self._stack.enter_context(self._server.activate())
        return self._server

    @property
    def expected(self) -> Rows:
        """The metrics of a training without kills."""
        if self._expected is None:
            case = Case(0, 0, "local", False, 1, ())
            training = _Training(case, self._launcher(case, "expected", {}), self._folder, None)
            training.run()
            self._expected = training.rows()
            if list(self._expected) != list(range(STEPS + 1)):
                raise RuntimeError(f"a training without kills has logged the steps {list(self._expected)}")
        return self._expected

    def run(self, case: Case) -> Finding:
        """Make the run of a case, and check it."""
        expected, begin = self.expected, time.monotonic()
        server = self.server if case.backend == "modal" else None
        mark, volume = uuid.uuid4().hex, f"v{case.number}-{uuid.uuid4().hex[:6]}"
        launcher = self._launcher(case, volume, {MARK: mark})
        training = _Training(case, launcher, self._folder, server)
        try:
            with MomentServer(self._sockets / mark[:8], training.on_moment) as moments:
                training.run(moments.environment)
            violations = [*training.violations(), *check_rows(expected, training.rows())]
        except Exception as error:  # in the run or in the campaign itself: continue with the other runs
            violations = [f"{type(error).__name__}: {error}"]
        left = wait_for_marked_processes(mark, 20)
        violations += [f"process {pid} is left: {command[:150]}" for pid, command in left.items()]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if server is not None:
            violations += [f"error in the loopback itself: {error!r}" for error in server.errors]
            violations += server.unimplemented
        if violations and training.results:
            violations += [f"  {line}" for line in training.messages()]
        shutil.rmtree(self._folder / "data" / "skyrl_modal" / "volumes" / volume, ignore_errors=True)
        attempts = sum(result.attempts for result in training.results)
        return Finding(case, len(training.killed), attempts, time.monotonic() - begin, tuple(violations))

    def _launcher(self, case: Case, volume: str, env: Mapping[str, str]) -> Launcher:
        return Launcher(
            backend=case.backend,
            checkout=self._checkout,
            gpu=None,
            ray=RaySpec() if case.ray else None,
            volumes=[VolumeSpec(name=volume)],
            mounts=[
                MountSpec(),
                MountSpec(local_path=TRAINER, remote_path=f"/root/{TRAINER.name}"),
                MountSpec(local_path=self._dataset, remote_path="/root/dataset"),
            ],
            env={**env, **_WANDB, "TRACKER": self._logger},
            timeout=RUN_TIMEOUT,
            retries=RETRIES,
            resume="auto",
            grace=4,
        )


class _Training:
    """The runs of one training, which usually is one run."""

    def __init__(self, case: Case, launcher: Launcher, folder: Path, server: LoopbackModal | None) -> None:
        self.killed: list[Kill] = []
        self.results: list[RunResult] = []
        self._case = case
        self._launcher = launcher
        self._folder = folder
        self._server = server
        self._lock = threading.Lock()
        self._counts: dict[Moment, int] = {}
        self._trainer = 0
        self._run: Run | None = None
        #: For each start of the trainer: the step that it continues from, and its last one.
        self._starts: list[list[int]] = []
        self._saved = 0
        self._failures: list[str] = []
        self._submitted = threading.Event()

    # -- the runs ----------------------------------------------------------------------------------------------------

    def run(self, env: Mapping[str, str] | None = None) -> None:
        """Train to the end. A run that is lost is followed by another one with the same command."""
        import attrs

        launcher = attrs.evolve(self._launcher, env={**self._launcher.env, **(env or {})})
        while True:
            self._submitted.clear()
            self._run = launcher.submit(self._command)
            self._submitted.set()
            try:
                self.results.append(self._run.wait(RUN_TIMEOUT))
            except BaseException:
                self._run.cancel()
                raise
            is_lost = self.results[-1].state is RunState.LOST
            lost = sum(kill.target is Target.SUPERVISOR for kill in self.killed)
            if not is_lost or len(self.results) > lost:
                return

    @property
    def _command(self) -> str:
        data = "/root/dataset" if self._case.backend == "modal" else "$SKYRL_REPO_ROOT/../dataset"
        arguments = [
            f"data.train_data=\"['{data}/train.jsonl']\"",
            f"data.val_data=\"['{data}/validation.jsonl']\"",
            "trainer.train_batch_size=32",
            "generator.n_samples_per_prompt=4",
            f"trainer.epochs={STEPS // 16}",
            f"trainer.ckpt_interval={INTERVAL}",
            f"trainer.eval_interval={INTERVAL}",
            f"trainer.placement.policy_num_gpus_per_node={self._case.ranks}",
            'trainer.ckpt_path="$SKYRL_DATA/ckpts"',
            'trainer.export_path="$SKYRL_DATA/exports"',
            'trainer.logger="$TRACKER"',
        ]
        script = f'bash "$SKYRL_REPO_ROOT/../{TRAINER.name}/run_quickstart.sh"'
        return f'echo "$WANDB_RUN_ID $WANDB_RESUME" >> "$SKYRL_DATA/ids"; {script} {" ".join(arguments)}'

    # -- the kills ---------------------------------------------------------------------------------------------------

    def on_moment(self, text: str, pid: int) -> bool:
        """Kill what is due at a moment of the trainer."""
        with self._lock:
            moment = self._count(text, pid)
            if len(self.killed) >= len(self._case.kills):
                return True
            kill = self._case.kills[len(self.killed)]
            is_start = kill.moment is Moment.START and sum(self._counts.values()) == 1
            if not is_start and (moment is not kill.moment or self._counts[moment] != kill.number):
                return True
            self.killed.append(kill)
        self._submitted.wait()
        try:
            self._kill(kill, pid)
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            self._failures.append(f"{kill}: {error!r}")
            return True
        return False

    def _count(self, text: str, pid: int) -> Moment:
        """Record a moment, and return its kind."""
        if pid != self._trainer:
            self._trainer, self._counts = pid, {}
        moment = Moment.STEP
        if text.startswith("half of "):
            moment = Moment.FILE
        elif text.startswith("empty "):
            moment = Moment.POINTER
        else:
            step = int(text.split()[1])
            if not self._counts:
                self._starts.append([step, step])
            self._starts[-1][1] = max(self._starts[-1][1], step)
            if text.endswith("before its metrics"):
                moment = Moment.START
            elif text.endswith("after its checkpoint"):
                moment = Moment.SAVED
        self._counts[moment] = self._counts.get(moment, 0) + 1
        if moment is not Moment.SAVED:
            return moment
        # What is killed now may not be committed yet. Everything before has to be.
        self._previous, self._saved = self._saved, step
        return moment

    _previous = 0

    def _kill(self, kill: Kill, pid: int) -> None:
        match kill.target:
            case Target.TRAINER:
                os.kill(pid, signal.SIGKILL)
            case Target.RAYLET:
                os.kill(self._raylet(), signal.SIGKILL)
            case Target.SUPERVISOR:
                assert self._run is not None
                os.kill(RunIndex().get(self._run.id).handle["pid"], signal.SIGKILL)
            case Target.CONTAINER:
                assert self._server is not None
                self._wait_for_commit(self._previous if kill.moment is Moment.SAVED else self._saved)
                self._server.kill()
            case Target.PREEMPTION:
                assert self._server is not None
                self._server.preempt()

    def _raylet(self) -> int:
        for pid in marked_processes(self._launcher.env[MARK]):
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "raylet":
                    return pid
        raise ValueError("there is no raylet")

    def _wait_for_commit(self, step: int) -> None:
        """Wait until a checkpoint is committed. The trainer waits meanwhile, as it would in a long step."""
        path = self._volume / "ckpts" / f"global_step_{step}" / "trainer_state.pt"
        if step and self._server is not None:
            self._server.wait_until(path.exists, COMMIT_TIMEOUT, f"{path} was not committed")

    # -- the checks --------------------------------------------------------------------------------------------------

    @property
    def _volume(self) -> Path:
        name = self._launcher.volumes[0].name
        if self._server is not None:
            return self._server.volume(name)
        return self._folder / "data" / "skyrl_modal" / "volumes" / name

    def rows(self) -> Rows:
        """Return the metrics of all runs by step, without durations."""
        rows: dict[int, dict[str, float]] = {}
        for result in self.results:
            for row in Run.attach(result.run_id).metrics():
                kept = {key: value for key, value in row.items() if key != "time" and not key.startswith("timing/")}
                rows.setdefault(int(kept.pop("step")), {}).update(kept)
        return dict(sorted(rows.items()))

    def violations(self) -> Iterator[str]:
        """Yield what differs from a training without kills, except for its metrics."""
        yield from self._failures
        last = self.results[-1]
        if last.state is not RunState.SUCCEEDED:
            yield f"the run has {last.state}, {last.returncode}, {last.cause} after {last.attempts} attempts"
        if not self.killed:
            yield "nothing was killed"
        expected = 1 + sum(kill.target is Target.SUPERVISOR for kill in self.killed)
        if len(self.results) != expected:
            yield f"there were {len(self.results)} runs instead of {expected}"
        pointer = self._volume / "ckpts" / "latest_ckpt_global_step.txt"
        if not pointer.exists() or pointer.read_text() != str(STEPS):
            yield f"the last checkpoint is {pointer.read_text() if pointer.exists() else 'missing'}"
        for (_, reached), (resumed, _) in zip(self._starts, self._starts[1:], strict=False):
            if reached - resumed > INTERVAL:
                yield f"{reached - resumed} steps were lost: killed at {reached}, continued from {resumed}"
        yield from self._wandb_violations()

    def _wandb_violations(self) -> Iterator[str]:
        ids = {result.run_id for result in self.results}
        found = set((self._volume / "ids").read_text().splitlines())
        if found != {f"{each} allow" for each in ids}:
            yield f"the variables of W&B were {sorted(found)} in the runs {sorted(ids)}"
        if self._launcher.env["TRACKER"] != "wandb":
            return
        for each in ids:
            folders = (self._volume / ".skyrl_modal" / "runs" / each / "trackers" / "wandb").glob("offline-run-*")
            names = [path.name.split("-", 3)[3] for path in folders]
            if set(names) != {each}:
                yield f"the run {each} has the W&B runs {names}"

    def messages(self) -> list[str]:
        """Return the last messages of the launcher, for a violation."""
        lines = [line[:200] for result in self.results for line in Run.attach(result.run_id).logs()]
        return [line for line in lines if "skyrl-modal |" in line or "Error" in line][-15:]


def _own_variables(folder: Path) -> dict[str, str]:
    return {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("DATA", "STATE", "CACHE")}


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _quickstart_checkout() -> Path:
    """Return the checkout that the quickstart makes from the package index, in the user's cache."""
    script = "import quickstart; print(quickstart.published_checkout())"
    done = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES, check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.splitlines()[-1])
