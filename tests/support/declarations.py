"""Declarations of runs, valid and invalid ones of every field, as plain data.

``LOCAL`` and ``MODAL`` name the backends that refuse a declaration. A text can contain ``{folder}``: the folder of the
files that ``write_files`` creates.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.skyrl.checkout_files import create_checkout

LOCAL, MODAL = "local", "modal"
BOTH = (LOCAL, MODAL)
#: A trainer, so that resume and the findings about SkyRL's arguments apply. Its program does not exist: it fails.
TRAINER = "python -m skyrl.train.entrypoints.main_base trainer.logger=console"
#: A checkout in the form of SkyRL's, with the configuration that findings about arguments need.
FULL_CHECKOUT = "{folder}/full"
#: A variable of the environment whose value is secret, and its value.
SECRET_NAME, SECRET_VALUE = "TOKEN_OF_TEST", "a-long-secret-value"
_LARGE = "x" * 100_000


@attrs.frozen(kw_only=True)
class Declaration:
    """One declaration.

    Attributes:
        kind: What is wrong with it, or which fields it has.
        fields: The fields of the launcher. Dicts stand for the specs in them.
        command: The command.
        refused: The backends on which a run is refused before anything is started.
        needs_server: Whether only Modal's servers know that it is refused: a plan knows it with ``check``.
        finding: The code of the finding with which a plan reports it; empty if a plan raises the error too.
        only_shell: Whether only the command line refuses it, since Python reads no configuration file.
        folder: The working directory, below the folder of the files.
    """

    kind: str
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    command: Any = "true"
    refused: Sequence[str] = ()
    needs_server: bool = False
    finding: str = ""
    only_shell: bool = False
    folder: str = "SkyRL"


def _each(kind: str, field: str, *values: Any, refused: Sequence[str] = BOTH, **more: Any) -> Iterator[Declaration]:
    """Yield a declaration for each value of a field, which may be one of a table: ``ray.port``."""
    table, _, name = field.rpartition(".")
    for value in values:
        fields = {table: {name: value}} if table else {name: value}
        yield Declaration(kind=kind, fields={**fields, **more}, refused=refused)


def _commands(kind: str, *commands: Any, refused: Sequence[str] = (), **fields: Any) -> Iterator[Declaration]:
    for command in commands:
        yield Declaration(kind=kind, fields=fields, command=command, refused=refused)


def _invalid() -> Iterator[Declaration]:
    yield from _each("gpu", "gpu", "A100:0", "", "A100:four", "A 100", [], ["L4:1", "L4:-1"], 4)
    yield from _each("cpu", "cpu", 0, -1, 1e9, "two")
    yield from _each("memory", "memory", 1, -5, 2**40, 128.5)
    yield from _each("nodes", "nodes", 0, -1, 1.5)
    yield from _each("duration", "timeout", 0, -5, "soon", "10 parsecs", float("inf"))
    yield from _each("duration", "grace", 0, "long")
    yield from _each("duration", "stall", -1, "")
    yield from _each("duration", "start_deadline", 0, "1 x")
    yield from _each("duration", "lease", 0, "never")
    yield from _each("retries", "retries", -1, 11, 1.5, True)
    yield from _each("exit codes", "should_retry", [0], [256], ["x"])
    yield from _each("resume", "resume", "always", True)
    yield from _each("budget", "budget", 0, -3, "ten")
    yield from _each("rate", "rate", -1, 1e9)
    yield from _each("region", "region", 5, "", ["us-east"])
    yield from _each("cloud", "cloud", 5, "")
    yield from _each("rdma", "rdma", True, "yes")
    yield from _each("name", "name", "a/b", "x" * 65, "")
    yield from _each("app name", "app_name", "two names", "")
    yield from _each("tags", "tags", ["a b"], ["a,b"], [""], ["\x1b[31m"])
    yield from _each("workdir", "workdir", "../x", "", "nowhere", "/nowhere", "train.py")
    yield from _each("checkout", "checkout", "{folder}/nothing", "{folder}/empty")
    yield from _each("backend", "backend", "modall", "")
    yield from _each("secret name", "secrets", ["KEY=value"], ["two names"], ["1KEY"])
    yield from _each("secret without value", "secrets", ["NOT_DEFINED_ANYWHERE"])
    yield from _each("secret spec", "secrets", [{"name": "a b"}], [{"name": "a", "source": "elsewhere"}])
    yield Declaration(
        kind="secret on Modal", fields={"secrets": [{"name": "none-such"}]}, refused=BOTH, needs_server=True
    )
    yield from _commands("secret in the command", f"echo {SECRET_VALUE}", refused=BOTH, secrets=[SECRET_NAME])
    yield from _each("secret in a variable", "env", {"COPY": SECRET_VALUE}, secrets=[SECRET_NAME])
    yield from _each("variable", "env", {"1A": "x"}, {"A-B": "x"}, {"A": "x\0"}, {"A": 2 * _LARGE}, {"A": "\ud800"})
    yield from _each("variable of the run", "env", {"NUM_GPUS": "2"}, {"SKYRL_DATA": "/x"}, {"SKYRL_RUN_ID": "x"})
    yield from _each("variables together", "env", {f"A{number}": _LARGE for number in range(20)})
    yield from _each("image", "image.base", "", "two words", "\ud800", 5)
    yield from _each("image", "image.pip", [5])
    yield from _each("image", "image.python", "2.7", 3.11)
    yield from _each("image", "image.registry_secret", 5, "a b")
    yield from _each("image step", "image.steps", [{"step": "apt", "packages": []}])
    yield from _each("image step", "image.steps", [{"step": "uv_sync"}], refused=(MODAL,))
    copy = {"step": "copy", "source": "none", "target": "/x"}
    yield from _each("image step", "image.steps", [copy], refused=(MODAL,))
    registry = {"registry_secret": "none-such"}
    yield Declaration(kind="registry", fields={"image": registry}, refused=(MODAL,), needs_server=True)
    yield from _each("volume", "volumes", [{"name": "a b"}], [{"mount_path": "data"}], [{"version": 3}], [{"name": ""}])
    yield from _each("volume", "volumes", [{"read_only": "yes"}], [{"create_if_missing": 5}])
    yield from _each("reserved path", "volumes", [{"mount_path": "/etc"}], [{"mount_path": "/"}])
    yield from _each("reserved path", "volumes", [{"mount_path": "/usr/bin/x"}], [{"mount_path": "/root"}])
    yield from _each("two volumes", "volumes", [{"name": "a"}, {"name": "b"}])
    yield from _each(
        "two volumes", "volumes", [{"name": "a"}, {"name": "b", "mount_path": "/root/data/.skyrl_modal/x"}]
    )
    yield from _each("volume hides files", "volumes", [{"mount_path": "/root/SkyRL/skyrl"}])
    yield from _each("volume hides files", "volumes", [{"mount_path": "/root/SkyRL/train.py"}])
    for text in ("a\ud800", "a\0b"):
        yield from _each("text", "workdir", text)
        yield from _each("text", "volumes", [{"mount_path": f"/root/{text}"}])
        yield from _each("text", "mounts", [{"remote_path": f"/root/{text}"}], [{"local_path": f"/{text}"}])
        yield from _each("text", "mounts", [{"exclude": [text]}], [{"include": [text]}])
        yield from _each("text", "secrets", [{"name": "a", "keys": [text]}])
        copy = {"step": "copy", "source": "/etc/hosts", "target": f"/{text}"}
        yield from _each("text", "image.steps", [{"step": "uv_sync", "extras": [text]}], [copy])
    for wrong in (
        {"name": "s3://data"},
        {"name": "Two Names"},
        {"endpoint_url": "ftp://host"},
        {"key_prefix": "folder"},
        {"key_prefix": "\ud800/"},
        {"secret": "a b"},
        {"oidc_auth_role_arn": "me"},
        {"requester_pays": True},
        {"read_only": "yes"},
        {"mount_path": "/etc/x"},
        {"mount_path": "/root/data"},
        {"mount_path": "/root/SkyRL/skyrl"},
    ):
        yield from _each("bucket", "buckets", [{"name": "data", "mount_path": "/mnt/data", **wrong}])
    bucket = {"name": "data", "mount_path": "/mnt/data", "secret": "none-such"}
    yield Declaration(kind="bucket", fields={"buckets": [bucket]}, refused=(MODAL,), needs_server=True)
    missing = {"name": "no-such-volume", "create_if_missing": False}
    yield Declaration(kind="no volume", fields={"volumes": [missing]}, refused=BOTH, needs_server=True)
    yield from _each("mount", "mounts", [{}, {"local_path": "{folder}/nothing", "remote_path": "/x"}])
    yield from _each("mount", "mounts", [{}, {"local_path": "{folder}/SkyRL/train.py", "remote_path": "/x"}])
    yield from _each("mount", "mounts", [{}, {"local_path": "{folder}/other", "remote_path": "x"}])
    yield from _each("mount", "mounts", [{"skip_caches": "no"}])
    yield from _each("two mounts", "mounts", [{}, {"local_path": "{folder}/other"}])
    yield from _each("two mounts", "mounts", [{}, {"local_path": "{folder}/other", "remote_path": "/root/SkyRL/x"}])
    yield from _each("mount below a volume", "mounts", [{"remote_path": "/root/data/SkyRL"}])
    yield from _each("pattern", "mounts", [{"exclude": ["../x"]}], [{"include": [""]}], [{"exclude": ["a\nb"]}])
    yield from _each("ray", "ray.port", 80, 10005, 70000)
    yield from _each("ray", "ray.num_cpus", 0, 1.5)
    yield from _each("ray", "ray.object_store_memory", 5)
    yield from _each("ray", "ray.start_timeout", 0)
    yield from _each("ray", "ray.on_worker_loss", "ignore")
    yield from _each("ray", "ray.dashboard", "yes")
    yield from _each("ray", "ray.env", {"RAY_ADDRESS": "x"})
    yield from _each("timeout on Modal", "timeout", "25h", 86401, refused=(MODAL,))
    yield from _each("cluster on Modal", "nodes", 2, refused=(MODAL,))
    yield from _each("cluster on Modal", "gpu", "H100:4", ["H100:8", "H200:1"], refused=(MODAL,), nodes=2)
    yield from _each("cluster on Modal", "nodes", 33, refused=(MODAL,), gpu="H100:8", ray=None)
    yield from _each("dashboard of an old Ray", "ray.dashboard", True, refused=(MODAL,), image={"base": None})
    yield from _commands("command", "", "  ", [], "a\0b", ["a", 5], 5, None, "\ud800", refused=BOTH)
    fields: Mapping[str, Any] = {"resume": "auto", "volumes": [], "checkout": FULL_CHECKOUT}
    code = "resume-without-volume"
    command = f"{TRAINER} trainer.ckpt_path=/root/data/ckpts/a trainer.ckpt_interval=5"
    yield Declaration(kind="no volume to resume", fields=fields, command=command, refused=(MODAL,), finding=code)
    yield Declaration(kind="no checkout", refused=BOTH, folder="no-checkout")
    fields = {"secrets": ["TOKEN_IN_FILE"]}
    yield Declaration(kind="unreadable .env", fields=fields, refused=BOTH, folder="SkyRL/bad-env")
    for name in ("bad-settings", "unknown-setting", "refused-setting"):
        yield Declaration(kind="settings file", refused=BOTH, only_shell=True, folder=f"SkyRL/{name}")


def _valid() -> Iterator[Declaration]:
    none: Sequence[str] = ()
    yield from _each("gpu", "gpu", "L4", "a100-80gb:2", ["H100:8", "A100:8"], "ANY", refused=none)
    yield from _each("cpu", "cpu", 0.125, 2, refused=none)
    yield from _each("memory", "memory", 128, 65536, refused=none)
    yield from _each("duration", "timeout", "90m", 30, "24h", refused=none)
    yield from _each("duration", "grace", 1, 60, refused=none)
    yield from _each("duration", "stall", "10m", refused=none)
    yield from _each("duration", "start_deadline", "1h", refused=none)
    yield from _each("duration", "lease", "5m", refused=none)
    yield from _each("retries", "retries", 1, 10, refused=none)
    yield from _each("exit codes", "should_retry", [1, 137], [2], refused=none)
    yield from _each("resume", "resume", "auto", refused=none)
    yield from _each("budget", "budget", 0.5, 100, refused=none)
    yield from _each("rate", "rate", 0, 2.5, refused=none)
    yield from _each("region", "region", "us-east", refused=none)
    yield from _each("cloud", "cloud", "aws", refused=none)
    yield from _each("name", "name", "lr-1e-6", refused=none)
    yield from _each("app name", "app_name", "my.app", refused=none)
    yield from _each("tags", "tags", ["a", "b"], ["täg"], refused=none)
    yield from _each("workdir", "workdir", "skyrl", "/root/data", refused=none)
    yield from _each("secret", "secrets", [SECRET_NAME], [SECRET_NAME, "TOKEN_IN_FILE"], refused=none)
    optional = {"source": "environment", "optional": True}
    yield from _each("secret", "secrets", [{"name": "NOT_DEFINED_ANYWHERE", **optional}], refused=none)
    yield from _each("secret", "secrets", [{"name": "none-such", "optional": True}], refused=none)
    yield from _each("variable", "env", {"A": "1", "B": "täxt"}, {"PYTHONUNBUFFERED": "1"}, refused=none)
    yield from _each("image", "image.pip", ["wandb"], refused=none)
    yield from _each("image", "image.commands", ["true"], refused=none)
    yield from _each("image step", "image.steps", [{"step": "copy", "source": "skyrl", "target": "/x"}], refused=none)
    yield from _each("volume", "volumes", [{"name": "further", "mount_path": "/mnt/x"}], [], refused=none)
    yield from _each("volume", "volumes", [{"name": "further", "read_only": True}], refused=none)
    yield from _each(
        "bucket", "buckets", [{"name": "data", "mount_path": "/mnt/data", "read_only": True}], refused=none
    )
    yield from _each("mount", "mounts", [{}, {"local_path": "{folder}/other", "remote_path": "/mnt/o"}], refused=none)
    yield from _each("mount", "mounts", [], refused=none)
    yield from _each("pattern", "mounts", [{"include": ["*.secret"]}], [{"exclude": ["/train.py"]}], refused=none)
    yield from _commands("command", ["echo", "two parts"], "exit 3", "ray stop", "cd /root/data && ls ~/data")
    # Programs of the trainers do not exist here: the commands fail, after they have been started.
    yield from _commands(
        "findings",
        f"{TRAINER} trainer.ckpt_path=/tmp/ckpts trainer.ckpt_interval=-1",
        f"{TRAINER} trainer.placement.policy_num_gpus_per_node=8",
        f"{TRAINER} trainer.no_such_key=5 data.train_data=\"['/nowhere/x.parquet']\"",
        f"{TRAINER} trainer.logger=wandb trainer.log_path=/tmp/logs",
        checkout=FULL_CHECKOUT,
    )
    yield from _commands("findings", "bash run.sh")
    yield from _commands("findings", TRAINER, resume="auto", checkout=FULL_CHECKOUT)


def _combined(count: int, seed: int = 17) -> Iterator[Declaration]:
    """Yield declarations with the fields of two others each, of which one or both may be invalid."""
    numbers = random.Random(seed)
    invalid = [each for each in _invalid() if each.fields and each.folder == "SkyRL"]
    invalid = [each for each in invalid if not each.needs_server and not each.finding]
    valid = [each for each in _valid() if each.fields]
    while count:
        first, second = numbers.choice(invalid), numbers.choice(numbers.choice((valid, invalid)))
        if set(first.fields) & set(second.fields) or "true" not in (first.command, second.command):
            continue
        if {first.refused, second.refused} != {BOTH, second.refused}:
            continue  # whether the second one changes what the first one lacks is not obvious
        command = second.command if first.command == "true" else first.command
        kind = f"{first.kind} and {second.kind}"
        yield Declaration(kind=kind, fields={**second.fields, **first.fields}, command=command, refused=BOTH)
        count -= 1


#: All declarations, the invalid ones first.
DECLARATIONS: Sequence[Declaration] = (*_invalid(), *_combined(30), *_valid())


def write_files(folder: Path) -> None:
    """Create the files that declarations name, next to the checkout ``SkyRL`` in a folder."""
    checkout = folder / "SkyRL"
    create_checkout(folder / "full")
    (checkout / "run.sh").write_text("ray stop\nuv run python train.py\n")
    for name in ("empty", "other", "no-checkout"):
        (folder / name).mkdir()
    (folder / "other" / "file").write_text("x\n")
    (checkout / ".env").write_text("TOKEN_IN_FILE=from-a-file\n")
    for name, file, text in (
        ("bad-env", ".env", b"TOKEN_IN_FILE=\xff\n"),
        ("bad-settings", "skyrl-modal.toml", b"gpu = \n"),
        ("unknown-setting", "skyrl-modal.toml", b"gpus = 'L4'\n"),
        ("refused-setting", "skyrl-modal.toml", b"backend = 'local'\n"),
    ):
        (checkout / name).mkdir()
        (checkout / name / file).write_bytes(text)
