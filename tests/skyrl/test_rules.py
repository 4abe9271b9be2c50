"""Tests of the findings about what a command starts: each rule with a start that it is about, and one that is right."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import Launcher, SecretSpec, VolumeSpec
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.config_schema import ConfigSchema
from skyrl_modal.skyrl.resolution.records import EntrypointKind, Resolution, ResolutionMethod, Start
from skyrl_modal.skyrl.rules.catalog import find_in_starts
from skyrl_modal.skyrl.rules.facts import RunFacts
from tests.skyrl.checkout_files import SCRIPTS

LABELS = SCRIPTS.with_name("labels.toml")
TRAIN, SFT, TINKER = EntrypointKind.TRAIN, EntrypointKind.SFT, EntrypointKind.TINKER
#: Overrides with which a start has no finding.
RIGHT: dict[EntrypointKind, dict[str, str]] = {
    TRAIN: {
        "trainer.ckpt_path": "/root/data/ckpts/a",
        "trainer.export_path": "/root/data/exports/a",
        "trainer.max_ckpts_to_keep": "2",
        "trainer.logger": "console",
    },
    SFT: {"ckpt_path": "/root/data/a", "ckpt_interval": "10", "max_ckpts_to_keep": "2", "resume_from": "latest"},
    TINKER: {},
}
FLAGS = {
    TINKER: {
        "base-model": "Qwen/Qwen3-0.6B",
        "checkpoints-base": "/root/data/t",
        "database-url": "sqlite:////root/data/t.db",
    }
}
RUN = RunFacts(
    volumes=["/root/data", "/mnt/bucket"],
    writable_volumes=["/root/data"],
    writable_buckets=["/mnt/bucket"],
    mounts=["/root/SkyRL"],
    image="novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0-megatron",
    env={"HF_HOME": "/root/data/hf"},
)


@pytest.fixture(scope="module")
def schema(skyrl_checkout: Path) -> ConfigSchema:
    """Return the configuration of the checkout."""
    return ConfigSchema.read(skyrl_checkout)


def find(
    schema: ConfigSchema,
    kind: EntrypointKind = TRAIN,
    overrides: Mapping[str, str] | None = None,
    *,
    run: RunFacts = RUN,
    **fields: Any,
) -> dict[str, Finding]:
    """Return the findings about one start by code."""
    given = {"program": "main", "cwd": "/root/SkyRL", "flags": FLAGS.get(kind, {}), **fields}
    start = Start(kind=kind, overrides={**RIGHT.get(kind, {}), **(overrides or {})}, **given)
    return {finding.code: finding for finding in find_in_starts(Resolution(starts=(start,)), run, schema)}


@pytest.mark.parametrize("kind", [TRAIN, SFT, TINKER])
def test_right_start_has_no_finding(schema: ConfigSchema, kind: EntrypointKind) -> None:
    """A start whose results are kept and whose keys are defined has no finding."""
    assert find(schema, kind) == {}


P, G = "trainer.placement.", "generator.inference_engine."
#: Code, kind, overrides, number of GPUs of the run.
GPU_CASES: list[tuple[str, EntrypointKind, dict[str, str], int]] = [
    ("gpus-exceed-request", TRAIN, {f"{P}policy_num_gpus_per_node": "4", f"{G}num_engines": "4"}, 2),
    ("gpus-exceed-request", TRAIN, {f"{P}colocate_all": "false"}, 1),
    ("gpus-unused", TRAIN, {}, 2),
    ("", TRAIN, {f"{P}colocate_all": "false"}, 2),
    ("", TRAIN, {f"{P}policy_num_gpus_per_node": "4", f"{G}num_engines": "2", f"{G}tensor_parallel_size": "2"}, 4),
    ("gpus-exceed-request", TRAIN, {f"{P}colocate_all": "false", f"{P}colocate_policy_ref": "false"}, 2),
    ("gpus-exceed-request", TRAIN, {f"{P}colocate_all": "false", "trainer.critic.model.path": "a/b"}, 2),
    ("gpus-unused", TRAIN, {f"{P}colocate_all": "false", "trainer.fully_async.simulate_training": "true"}, 2),
    ("gpus-unused", TRAIN, {f"{P}colocate_all": "false", f"{G}run_engines_locally": "false"}, 2),
    ("gpus-colocated-differ", TRAIN, {f"{P}policy_num_gpus_per_node": "2"}, 2),
    ("gpus-exceed-request", SFT, {}, 2),
    ("gpus-exceed-request", EntrypointKind.SERVE, {f"{P}colocate_all": "false", f"{G}num_engines": "4"}, 2),
    ("", EntrypointKind.GENERATE, {f"{G}num_engines": "2"}, 2),
    ("gpus-exceed-request", TINKER, {f"{P}policy_num_gpus_per_node": "4", f"{G}num_engines": "4"}, 2),
    ("", TINKER, {}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("code", "kind", "overrides", "gpus"), GPU_CASES)
def test_gpus(schema: ConfigSchema, code: str, kind: EntrypointKind, overrides: dict[str, str], gpus: int) -> None:
    """The GPUs of policy, reference, critic and engines are compared with those that the run requests."""
    found = find(schema, kind, overrides, run=evolve(RUN, gpus=gpus))

    assert [name for name in found if name.startswith("gpus-")] == ([code] if code else [])


def test_gpus_of_all_nodes_count(schema: ConfigSchema) -> None:
    """The GPUs of all nodes count, and an unknown number is no finding."""
    overrides = {f"{P}policy_num_nodes": "2", f"{P}policy_num_gpus_per_node": "4", f"{G}num_engines": "8"}

    assert "gpus-exceed-request" in find(schema, TRAIN, overrides, run=evolve(RUN, gpus=4))
    assert find(schema, TRAIN, overrides, run=evolve(RUN, gpus=4, nodes=2)) == {}
    assert find(schema, TRAIN, overrides, run=evolve(RUN, gpus=None)) == {}
    assert find(schema, TRAIN, overrides, run=evolve(RUN, gpus=1), has_own_placement=True) == {}


MEGATRON = "trainer.policy.megatron_config"
#: Code, kind, overrides, further fields of the start.
CASES: list[tuple[str, EntrypointKind, dict[str, str], dict[str, Any]]] = [
    ("batch-size", TRAIN, {"trainer.train_batch_size": "100"}, {}),
    ("batch-size", TRAIN, {"trainer.micro_train_batch_size_per_gpu": "7"}, {}),
    ("batch-size", TRAIN, {"trainer.strategy": "megatron", f"{MEGATRON}.tensor_model_parallel_size": "2"}, {}),
    ("batch-size", SFT, {"batch_size": "6"}, {}),
    ("batch-size", SFT, {"batch_size": "8", "micro_train_batch_size_per_gpu": "4"}, {}),
    ("unknown-key", TRAIN, {"trainer.learning_rate": "1"}, {}),
    ("unknown-key", TRAIN, {"+trainer.epochs": "1"}, {}),
    ("unknown-key", SFT, {"trainer.logger": "console"}, {}),
    ("wandb-key-missing", TRAIN, {"trainer.logger": "wandb"}, {}),
    ("wandb-key-missing", SFT, {"logger": "wandb"}, {}),
    ("hf-token-missing", TRAIN, {"trainer.policy.model.path": "meta-llama/Llama-3.1-8B"}, {}),
    ("env-file-missing", TRAIN, {}, {"env_files": (".env",)}),
    ("data-path", TRAIN, {"data.train_data": "['/scratch/train.parquet']"}, {}),
    ("model-path", TRAIN, {"trainer.policy.model.path": "/root/ckpts/a"}, {}),
    ("ckpt-path", TRAIN, {"trainer.ckpt_path": "/root/ckpts/a"}, {}),
    ("ckpt-path", TRAIN, {"trainer.ckpt_path": "ckpts"}, {}),
    ("ckpt-path", TRAIN, {"trainer.ckpt_path": "~/ckpts"}, {}),
    ("ckpt-path", SFT, {"ckpt_path": "/tmp/a"}, {}),
    ("ckpt-path", TINKER, {}, {"flags": {**FLAGS[TINKER], "checkpoints-base": "/tmp/t"}}),
    ("ckpt-bucket", TRAIN, {"trainer.ckpt_path": "/mnt/bucket/a"}, {}),
    ("export-path", TRAIN, {"trainer.export_path": "/root/exports"}, {}),
    ("export-path", SFT, {"hf_save_interval": "5", "export_path": "/tmp/a"}, {}),
    ("log-path", TRAIN, {"trainer.log_path": "/tmp/skyrl-logs-a"}, {}),
    ("database-path", TINKER, {}, {"flags": {**FLAGS[TINKER], "database-url": ""}}),
    ("resume-off", TRAIN, {"trainer.resume_mode": "null"}, {}),
    ("resume-off", TRAIN, {"trainer.resume_mode": "none"}, {}),
    ("resume-off", SFT, {"resume_from": ""}, {}),
    ("ckpt-interval-off", TRAIN, {"trainer.ckpt_interval": "-1"}, {}),
    ("ckpt-interval-off", SFT, {"ckpt_interval": "0"}, {}),
    ("ckpts-all-kept", TRAIN, {"trainer.max_ckpts_to_keep": "-1"}, {}),
    ("tracker-path", TRAIN, {"trainer.logger": "tensorboard"}, {}),
    ("tracker-path", TRAIN, {"trainer.logger": "wandb"}, {"env": {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}}),
    ("hf-home", TRAIN, {}, {"env": {"HF_HOME": "/tmp/hf"}}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "kind", "overrides", "fields"), CASES)
def test_rule_finds(
    schema: ConfigSchema, code: str, kind: EntrypointKind, overrides: dict[str, str], fields: dict[str, Any]
) -> None:
    """A rule finds the start that it is about, no other rule does, and the severity is the documented one."""
    found = find(schema, kind, overrides, **fields)
    documented = tomllib.loads(LABELS.read_text())["codes"]

    assert list(found) == [code]
    assert documented[code].startswith(found[code].severity)


RIGHT_CASES: list[tuple[EntrypointKind, dict[str, str], dict[str, Any]]] = [
    (TRAIN, {"trainer.ckpt_path": "s3://bucket/a", "trainer.export_path": "gs://bucket/a"}, {}),
    (TRAIN, {"trainer.ckpt_path": "/root/data/../data/a"}, {}),
    (TRAIN, {"trainer.logger": "wandb"}, {"env": {"WANDB_API_KEY": "x"}}),
    (TRAIN, {"trainer.logger": "tensorboard"}, {"env": {"TENSORBOARD_DIR": "/root/data/tb"}}),
    (TRAIN, {"trainer.ckpt_interval": "-1", "trainer.fully_async.simulate_training": "true"}, {}),
    (TRAIN, {"trainer.eval_interval": "0", "trainer.export_path": "/tmp/e"}, {}),
    (TRAIN, {"trainer.ckpt_path": "/tmp/c", "trainer.export_path": "/tmp/e"}, {"writes_results": False}),
    (TRAIN, {"trainer.own": "1"}, {"has_own_config": True}),
    (TRAIN, {f"{G}engine_init_kwargs.a.b": "1", "environment.search.url": "x"}, {}),
    (TRAIN, {f"{G}async_engine": "true"}, {}),
    (TRAIN, {"data.train_data": "['org/data:train']", "data.val_data": "['/root/data/a.parquet']"}, {}),
    (TRAIN, {"trainer.ckpt_path": "${oc.env:CKPTS}"}, {}),
    (SFT, {"dummy_run_full_ctx": "true", "ckpt_interval": "0"}, {}),
    (SFT, {"batch_size": "5", "use_sequence_packing": "true"}, {}),
    (EntrypointKind.OTHER, {"trainer.ckpt_path": "/tmp"}, {}),
    (EntrypointKind.DATASET, {}, {}),
]


@pytest.mark.parametrize(("kind", "overrides", "fields"), RIGHT_CASES)
def test_right_settings_have_no_finding(
    schema: ConfigSchema, kind: EntrypointKind, overrides: dict[str, str], fields: dict[str, Any]
) -> None:
    """Settings that are right, or are not known, have no finding."""
    assert find(schema, kind, overrides, **fields) == {}


def test_unknown_arguments_have_no_finding(schema: ConfigSchema) -> None:
    """A start whose arguments are not all known has no finding about their defaults, and no error."""
    unknown = Start(kind=TRAIN, program="main", is_partial=True, method=ResolutionMethod.PARSED)
    key = Start(
        kind=TRAIN,
        program="main",
        overrides={**RIGHT[TRAIN], "trainer.logger": "wandb"},
        unknown_keys=("trainer.resume_mode",),
        method=ResolutionMethod.PARSED,
    )

    assert list(find_in_starts(Resolution(starts=(unknown,)), RUN, schema)) == []
    [finding] = find_in_starts(Resolution(starts=(key,)), RUN, schema)
    assert (finding.code, finding.severity) == ("wandb-key-missing", Severity.WARNING)


@given(st.dictionaries(st.sampled_from([*RIGHT[TRAIN], *RIGHT[SFT], "trainer.train_batch_size"]), st.text(max_size=20)))
def test_any_values_are_accepted(overrides: dict[str, str]) -> None:
    """No value of an argument ends a rule with an exception."""
    for kind in EntrypointKind:
        start = Start(kind=kind, program="main", overrides=overrides)
        list(find_in_starts(Resolution(starts=(start,)), evolve(RUN, gpus=4, nodes=2), ConfigSchema()))


def test_overrides_remove_their_findings(schema: ConfigSchema) -> None:
    """With the overrides of its findings, a start does not have these findings any more."""
    wrong = {
        "trainer.ckpt_path": "/root/ckpts/a",
        "trainer.export_path": "/tmp/exports/a",
        "trainer.log_path": "/tmp/logs",
        "trainer.resume_mode": "null",
        "trainer.max_ckpts_to_keep": "-1",
        "trainer.logger": "wandb",
    }
    found = find(schema, TRAIN, wrong)

    fixes = dict(text.split("=", 1) for finding in found.values() for text in finding.overrides)
    assert all(finding.overrides for finding in found.values())
    assert len(found) == len(wrong)
    assert find(schema, TRAIN, {**wrong, **fixes}) == {}
    assert fixes["trainer.ckpt_path"] == "/root/data/ckpts/a"


def test_state_of_the_volume_is_used(schema: ConfigSchema) -> None:
    """What exists on the volume, other runs and the time of earlier steps are used if they are known."""
    absent, present = evolve(RUN, path_exists=lambda path: False), evolve(RUN, path_exists=lambda path: True)
    used = evolve(RUN, used_checkpoint_folders={"/root/data/ckpts/a": "r1"})
    slow = evolve(RUN, seconds_per_step=600.0)
    off = {"trainer.resume_mode": "none"}

    assert list(find(schema, run=absent)) == ["data-missing"]
    assert find(schema, run=present)["ckpt-exists"].severity is Severity.NOTE
    assert find(schema, TRAIN, off, run=present)["ckpt-exists"].severity is Severity.WARNING
    assert list(find(schema, run=used)) == ["ckpt-in-use"]
    assert list(find(schema, run=slow)) == ["ckpt-interval-long"]


def test_several_nodes_share_adapters(schema: ConfigSchema) -> None:
    """Adapters in /tmp are found if the policy is on several nodes; merged ones are not exchanged."""
    lora = {"trainer.policy.model.lora.rank": "8", f"{P}policy_num_nodes": "2", f"{G}num_engines": "2"}
    nodes = evolve(RUN, nodes=2, gpus=1)

    assert list(find(schema, TRAIN, lora, run=nodes)) == ["lora-path"]
    assert find(schema, TRAIN, {**lora, "trainer.strategy": "megatron"}, run=nodes) == {}


def test_image_and_uv(schema: ConfigSchema) -> None:
    """megatron without its image, and uv that is not installed, are found."""
    image = "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0"

    assert list(find(schema, run=evolve(RUN, image=image), extras=("megatron",))) == ["megatron-image"]
    assert find(schema, run=evolve(RUN, image=image), extras=("fsdp",)) == {}
    assert list(find(schema, run=evolve(RUN, has_uv=False), uses_uv=True)) == ["uv-missing"]


def codes(launcher: Launcher, command: str) -> set[str]:
    """Return the codes of the findings of a plan that have a label."""
    labelled = tomllib.loads(LABELS.read_text())["codes"]
    return {finding.code for finding in launcher.plan(command).findings} & set(labelled)


def test_plan_has_the_findings(skyrl_checkout: Path) -> None:
    """A plan of a script contains the findings, and its volumes, secrets and GPUs are used."""
    script = "bash scripts/simple.sh"
    launcher = Launcher(checkout=skyrl_checkout, backend="modal", gpu="L4:1")
    complete = evolve(
        launcher,
        gpu="L4:2",
        secrets=["WANDB_API_KEY"],
        volumes=[VolumeSpec(), VolumeSpec(name="home", mount_path="/root/ckpts")],
    )

    lost = {"ckpt-path", "export-path", "resume-off", "ckpts-all-kept", "hf-home"}
    assert codes(launcher, script) == lost | {"gpus-exceed-request", "wandb-key-missing"}
    assert codes(complete, script) == lost - {"ckpt-path"}
    assert "wandb-key-missing" not in codes(evolve(launcher, secrets=[SecretSpec(name="w", source="modal")]), script)
    assert ("starts", "skyrl.train.entrypoints.main_base (train)") in launcher.plan(script).rows()


def test_data_of_an_earlier_program_exist(skyrl_checkout: Path) -> None:
    """Data outside of volumes are no finding if the command itself prepares them."""
    launcher = Launcher(checkout=skyrl_checkout, backend="modal", gpu="L4:1")

    assert "data-path" not in codes(launcher, "bash scripts/prepare.sh")
    assert "data-path" in codes(launcher, "python examples/own/main_own.py data.train_data=/scratch/sums/train.parquet")


def test_files_of_this_machine_are_kept(skyrl_checkout: Path) -> None:
    """On this machine only files in /tmp and in the checkout are lost."""
    launcher = Launcher(checkout=skyrl_checkout, backend="local")
    command = "python -m skyrl.train.entrypoints.main_base trainer.logger=console"

    assert not codes(launcher, command) & {"ckpt-path", "export-path", "resume-off", "hf-home"}
    assert "ckpt-path" in codes(launcher, f"{command} trainer.ckpt_path=/tmp/ckpts")


def test_calls_of_ray_are_those_that_are_made(skyrl_checkout: Path) -> None:
    """A script that mentions `ray start` in a message or in another branch has no finding; one that calls it has."""
    launcher = Launcher(checkout=skyrl_checkout, backend="modal", gpu="L4:1")

    def found(command: str) -> set[str]:
        return {item.code for item in launcher.plan(command).findings} & {"ray-start-call", "ray-stop-call"}

    train = "python -m skyrl.train.main_sft seed=$(echo 1)"
    assert found(f"if false; then ray start --head; fi; echo 'no ray stop'; {train}") == set()
    assert found(f"ray start --head; {train}") == {"ray-start-call"}
