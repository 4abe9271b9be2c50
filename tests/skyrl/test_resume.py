"""``resume="auto"``: what is recorded of the trainers of a command, and findings about what cannot be continued."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from attrs import evolve

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.findings import Severity
from skyrl_modal.protocol.resume import ResumeTarget, TrainerKind, insert_arguments, resume_overrides

TRAINER = "python -m skyrl.train.entrypoints.main_base trainer.logger=console trainer.ckpt_path=/root/data/ckpts/a"
FULLY_ASYNC = "python -m examples.own.main_async trainer.ckpt_path=/root/data/ckpts/a"
SFT = "python -m skyrl.train.main_sft ckpt_path=/root/data/ckpts/s ckpt_interval=10"


@pytest.fixture
def launcher(skyrl_checkout: Path) -> Launcher:
    """Return a launcher for Modal with ``resume="auto"``."""
    return Launcher(checkout=skyrl_checkout, backend="modal", gpu="H100:4", volumes=[VolumeSpec()], resume="auto")


def script(text: str) -> str:
    """Return a command that runs a script with its own arguments."""
    return f"bash -c {shlex.quote(text)} own"


def targets(launcher: Launcher, command: str) -> tuple[ResumeTarget, ...]:
    """Return what the job of a command records."""
    resume = launcher.plan(command).job.resume
    return () if resume is None else resume.targets


def findings(launcher: Launcher, command: str) -> dict[str, Severity]:
    """Return the findings about resume by their codes."""
    return {item.code: item.severity for item in launcher.plan(command).findings if item.code.startswith("resume")}


@pytest.mark.parametrize(
    "command",
    [
        TRAINER,
        f"{TRAINER} trainer.resume_mode=null 2>&1 | tee /tmp/log",
        f"cd scripts && {TRAINER} && echo done",
        script(f'{TRAINER} trainer.resume_mode=null "$@"'),
        f"WANDB_MODE=offline {script(f'{TRAINER} trainer.resume_mode=none $@')} trainer.run_name='a b' # a comment",
        FULLY_ASYNC,
        SFT,
    ],
)
def test_recorded_position_reaches_the_trainer(launcher: Launcher, command: str) -> None:
    """Arguments that a container inserts at the position win over those of the script."""
    [target] = targets(launcher, command)
    assert target.position is not None
    wanted = resume_overrides(target.kind, f"{target.folder}/global_step_20")

    changed = insert_arguments(command, {target.position: list(wanted.items())})

    [start] = launcher.plan(changed).resolution.entrypoints
    assert {key: start.overrides.get(key) for key in wanted} == wanted
    assert findings(launcher, command) == {}


def test_facts_of_the_trainer(launcher: Launcher) -> None:
    """Kind, folder, strategy, critic and numbers of GPUs are those of the arguments and of SkyRL's defaults."""
    more = (
        "trainer.strategy=fsdp2 trainer.critic.model.path=m trainer.placement.policy_num_nodes=2 "
        "trainer.placement.policy_num_gpus_per_node=4 trainer.placement.critic_num_gpus_per_node=3"
    )

    [train] = targets(launcher, f"{TRAINER} {more}")
    [fully_async] = targets(launcher, FULLY_ASYNC)
    [sft] = targets(launcher, f"{SFT} strategy=megatron placement.num_nodes=2 placement.num_gpus_per_node=8")

    assert (train.kind, train.folder) == (TrainerKind.TRAIN, "/root/data/ckpts/a")
    assert (train.strategy, train.has_critic) == ("fsdp", True)
    assert train.world_sizes == {"policy": 8, "critic": 3}
    assert (fully_async.kind, fully_async.has_critic) == (TrainerKind.FULLY_ASYNC, False)
    assert (sft.kind, sft.folder, sft.strategy) == (TrainerKind.SFT, "/root/data/ckpts/s", "megatron")
    assert (sft.has_critic, sft.world_sizes) == (False, {"policy": 16})


def test_number_of_gpus_is_not_known(launcher: Launcher) -> None:
    """If the requested GPUs differ in their number, the arguments may too, and nothing is refused because of them."""
    used = evolve(launcher, gpu=["H100:8", "A100:4"])

    [target] = targets(used, script(f'{TRAINER} trainer.placement.policy_num_gpus_per_node=$NUM_GPUS "$@"'))

    assert target.world_sizes == {}


@pytest.mark.parametrize(
    "text",
    [
        f"{TRAINER} trainer.resume_mode=null\n",
        f'curl "$@"\n{TRAINER} trainer.resume_mode=null "$@"\n',
        f'{TRAINER} trainer.resume_mode=null trainer.run_name="$1"\n',
        f'[ $# = 0 ] || exit 3\n{TRAINER} trainer.resume_mode=null "$@"\n',
        f'{TRAINER} "$@" trainer.resume_mode=null\n',
    ],
)
def test_arguments_without_proof(launcher: Launcher, text: str) -> None:
    """Where the arguments do not arrive, arrive elsewhere too, or do not win, there is a warning and no record."""
    assert targets(launcher, script(text)) == ()
    assert findings(launcher, script(text)) == {"resume-without-effect": Severity.WARNING}


def test_script_that_continues_itself(launcher: Launcher) -> None:
    """If arguments cannot be passed, and the script continues from the pointer, only its folder is repaired."""
    command = script(f"{TRAINER} trainer.resume_mode=latest")

    [target] = targets(launcher, command)

    assert (target.position, target.folder) == (None, "/root/data/ckpts/a")
    assert findings(launcher, command) == {}


def test_several_trainers(launcher: Launcher) -> None:
    """Each has its own position. Those with the same arguments, or the same folder, use their pointers."""
    other = TRAINER.replace("ckpts/a", "ckpts/b")

    apart = targets(launcher, f"{TRAINER} && {other}")
    together = targets(launcher, script(f'{TRAINER} "$@"\n{other} "$@"'))
    same_folder = targets(launcher, f"{TRAINER} trainer.epochs=1 && {TRAINER} trainer.epochs=2")

    assert [(each.position, each.is_shared) for each in apart] == [
        (len(TRAINER), False),
        (2 * len(TRAINER) + 4, False),
    ]
    assert [(each.position is not None, each.is_shared, each.folder[-1]) for each in together] == [
        (True, True, "a"),
        (True, True, "b"),
    ]
    assert together[0].position == together[1].position
    assert [each.is_shared for each in same_folder] == [True, True]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo nothing", "no trainer of SkyRL was found"),
        ("python train.py", "no trainer of SkyRL was found"),
        (f"{TRAINER} trainer.ckpt_interval=-1", "writes no checkpoints"),
        (f"{TRAINER} trainer.ckpt_path=s3://bucket/a", "writes its checkpoints to s3://bucket/a"),
        (f"{TRAINER} trainer.ckpt_path=ckpts", "relative to Ray's copy of the checkout"),
        ("python -m skyrl.train.main_sft", "writes no checkpoints"),
    ],
)
def test_command_that_cannot_be_continued(launcher: Launcher, command: str, reason: str) -> None:
    """A warning states why resume has no effect, and the run is planned as it is."""
    plan = launcher.plan(command)
    [finding] = [item for item in plan.findings if item.code == "resume-without-effect"]

    assert plan.job.resume is None
    assert reason in finding.message
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize("name", ["$(date +%Y%m%d_%H%M%S)", "$RANDOM$RANDOM"])
def test_folder_that_differs_each_time(launcher: Launcher, name: str) -> None:
    """A folder with the time or a random number in its name has no earlier checkpoints, which is reported."""
    text = f'NAME={name}\n{TRAINER.replace("ckpts/a", "ckpts/$NAME")} trainer.run_name=$NAME "$@"'
    plan = launcher.plan(script(text))

    [finding] = [item for item in plan.findings if item.code == "resume-without-effect"]

    assert "to another folder each time it is started, such as /root/data/ckpts/" in finding.message
    assert plan.job.resume is None


def test_name_that_differs_each_time(launcher: Launcher) -> None:
    """Values with the time that are not the folder do not prevent that a trainer is continued."""
    text = f'export NAME=$(date +%Y%m%d_%H%M%S)-$RANDOM\n{TRAINER} trainer.run_name=$NAME "$@"'

    [target] = targets(launcher, script(text))

    assert target.position is not None
    assert findings(launcher, script(text)) == {}


def test_folder_with_the_id_of_the_run(launcher: Launcher) -> None:
    """All attempts of a run have its id, so that a folder with it can be continued from."""
    plan = launcher.plan(script(f'{TRAINER.replace("ckpts/a", "ckpts/$SKYRL_RUN_ID")} "$@"'))

    assert plan.job.resume is not None
    assert [target.folder for target in plan.job.resume.targets] == [f"/root/data/ckpts/{plan.job.run_id}"]
    assert plan.job.checkpoint_folders == (f"/root/data/ckpts/{plan.job.run_id}",)


def test_checkpoints_on_no_volume(launcher: Launcher) -> None:
    """On the container's own disk, only attempts in the same container continue: a warning, and a record."""
    command = f"{TRAINER} trainer.ckpt_path=/tmp/ckpts"

    assert findings(launcher, command) == {"resume-not-kept": Severity.WARNING}
    assert [target.folder for target in targets(launcher, command)] == ["/tmp/ckpts"]


@pytest.mark.parametrize("volumes", [[], [VolumeSpec(read_only=True)]])
def test_no_writable_volume(launcher: Launcher, volumes: list[VolumeSpec]) -> None:
    """Without a writable volume nothing could be continued, which is an error."""
    assert findings(evolve(launcher, volumes=volumes), TRAINER) == {"resume-without-volume": Severity.ERROR}


def test_rules_about_resume_know_it(launcher: Launcher) -> None:
    """With resume="auto" a script that does not resume is no problem; without it nothing is recorded."""
    command = f"{TRAINER} trainer.resume_mode=null"
    plain = evolve(launcher, resume=None)

    assert "resume-off" in {item.code for item in plain.plan(command).findings}
    assert "resume-off" not in {item.code for item in launcher.plan(command).findings}
    assert plain.plan(command).job.resume is None


def test_fixed_command_has_its_own_positions(launcher: Launcher) -> None:
    """A command that `--fix` has changed is resolved again."""
    command = f"{TRAINER} trainer.ckpt_path=/tmp/ckpts/a && echo done"
    fixed = launcher.plan(command).fixed_command

    [target] = targets(launcher, fixed)

    assert target.folder == "/root/data/ckpts/a"
    assert fixed[: target.position].endswith("trainer.ckpt_path=/root/data/ckpts/a") or "export_path" in fixed
    assert fixed[target.position :] == " && echo done"
