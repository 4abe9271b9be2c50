"""Everything that a user declares about a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.bucket import BucketSpec
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.fields import (
    above_zero,
    at_least,
    check_flag,
    check_name,
    check_optional_name,
    check_optional_text,
    check_tags,
    instance_of,
    one_of,
    to_env,
    to_specs,
    to_strings,
    tuple_of,
    whole_number,
)
from skyrl_modal.spec.gpu import GpuRequest, check_gpu_names, parse_gpu
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.mount_rules import check_places
from skyrl_modal.spec.option import option
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.shown import Shown
from skyrl_modal.spec.variables import check_names, check_total, check_value, variables_of_the_run
from skyrl_modal.spec.volume import VolumeSpec

#: Largest numbers of CPUs, and MiB of memory, that Modal's protocol can express: uint32, the first in thousandths.
MAX_CPU = (2**32 - 1) // 1000
MAX_MEMORY = 2**32 - 1
#: US dollars per hour and node above which a rate is a mistake: more than a host with eight GPUs costs anywhere.
MAX_RATE = 100_000

#: Headings of the options.
HARDWARE, LIMITS, FILES, NAMES = "Hardware", "Limits", "Files", "Names"


# mypy's plugin for attrs accepts named functions only as converters.
def _to_timeout(value: float | str | timedelta) -> float:
    return parse_duration(value, name="timeout")


def _to_grace(value: float | str | timedelta) -> float:
    return parse_duration(value, name="grace")


def _to_lease(value: float | str | timedelta) -> float:
    return parse_duration(value, name="lease")


def _to_start_deadline(value: float | str | timedelta | None) -> float | None:
    return None if value is None else parse_duration(value, name="start_deadline")


def _to_stall(value: float | str | timedelta | None) -> float | None:
    return None if value is None else parse_duration(value, name="stall")


def _to_secrets(value: str | SecretSpec | Sequence[str | SecretSpec]) -> Sequence[str | SecretSpec]:
    return (value,) if isinstance(value, str | SecretSpec) else tuple(value)


def to_exit_codes(value: Sequence[int] | Callable[[int], bool] | None) -> Sequence[int] | None:
    """Convert ``should_retry`` to a tuple of exit codes; None for any code.

    A callable cannot be sent to the container. It is called here with each exit code instead.

    Raises:
        SpecError: The value contains something other than an exit code from 1 to 255.
    """
    if value is None:
        return None
    if callable(value):
        return tuple(code for code in range(1, 256) if value(code))
    codes = tuple(value)
    if not all(isinstance(code, int) and 1 <= code <= 255 for code in codes):
        raise SpecError("should_retry", value, "pass exit codes from 1 to 255, or a callable that accepts one")
    return codes


def _to_checkout(value: str | Path | None) -> Path | None:
    if value is None:
        return None
    from skyrl_modal.checkout_search import find_checkout  # imported here, since most launchers name none

    return find_checkout(value)


@frozen(kw_only=True)
class RunSpec(Shown):
    """Everything that a user declares about a run, except for the backend.

    ``skyrl_modal.Launcher`` extends this class and documents its fields.
    """

    image: ImageSpec = field(factory=ImageSpec, validator=instance_of(ImageSpec))
    volumes: Sequence[VolumeSpec | BucketSpec] = field(
        factory=lambda: [VolumeSpec()],
        converter=to_specs,
        validator=tuple_of(VolumeSpec, BucketSpec),
        metadata=option(
            "Volumes, which replace the default one.",
            "volumes",
            flag="--volume",
            default="/root/data=skyrl-data",
            section=FILES,
        ),
    )
    mounts: Sequence[MountSpec] = field(
        factory=lambda: [MountSpec()],
        converter=to_specs,
        validator=tuple_of(MountSpec),
        metadata=option(
            "A further folder, at PATH in the container.", "mounts", flag="--mount", default="none", section=FILES
        ),
    )
    gpu: str | Sequence[str] | None = field(
        factory=lambda: os.environ.get("MODAL_GPU", "L4:1"),
        converter=check_gpu_names,
        metadata=option(
            "Type and number, such as A100-80GB:4; several with commas, in order of preference; or none.",
            "gpus",
            default="L4:1",
            variable="MODAL_GPU",
            section=HARDWARE,
        ),
    )
    nodes: int = field(
        default=1,
        validator=whole_number(1),
        metadata=option("Number of nodes of the Ray cluster.", "whole", section=HARDWARE),
    )
    rdma: bool = field(
        default=False,
        metadata=option("Place several nodes where Modal provides RDMA between GPUs.", "flag", section=HARDWARE),
    )
    ray: RaySpec | None = field(
        factory=RaySpec,
        validator=instance_of(RaySpec, optional=True),
        metadata=option("Whether Ray is running when the command starts.", "flag", default="on"),
    )
    timeout: float = field(
        default=3600.0,
        converter=_to_timeout,
        metadata=option("Limit of each attempt.", "duration", section=LIMITS),
    )
    retries: int = field(
        default=0,
        validator=whole_number(0, 10),
        metadata=option("Further attempts after a failure or a timeout.", "whole", section=LIMITS),
    )
    resume: Literal["auto"] | None = field(
        default=None,
        validator=one_of("auto"),
        metadata=option(
            "auto: continue each attempt from the newest complete checkpoint.",
            "choice",
            choices=("auto",),
            default="as the command does",
            section=LIMITS,
        ),
    )
    budget: float | None = field(
        default=None,
        validator=above_zero,
        metadata=option("Limit in US dollars for all attempts together.", "number", default="no limit", section=LIMITS),
    )
    rate: float | None = field(
        default=None,
        validator=at_least(0, MAX_RATE),
        metadata=option(
            "US dollars per hour and node.",
            "number",
            default="Modal's rates; a local run costs nothing",
            section=LIMITS,
        ),
    )
    stall: float | None = field(
        default=None,
        converter=_to_stall,
        metadata=option(
            "End an attempt without output and without a new step for this time.",
            "duration",
            default="no limit",
            section=LIMITS,
        ),
    )
    start_deadline: float | None = field(
        default=None,
        converter=_to_start_deadline,
        metadata=option("Time in which the command has to start.", "duration", default="no limit", section=LIMITS),
    )
    lease: float = field(
        default=600.0,
        converter=_to_lease,
        metadata=option(
            "How long a run may continue on Modal without a connection to this process.", "duration", section=LIMITS
        ),
    )
    secrets: Sequence[str | SecretSpec] = field(
        default=(),
        converter=_to_secrets,
        metadata=option(
            "A variable of your environment, or of a .env file, whose value is kept out of all records.",
            "secrets",
            flag="--secret",
            default="none",
        ),
    )
    env: Mapping[str, str] = field(
        factory=dict, converter=to_env, metadata=option("A variable for the command.", "variables", default="none")
    )
    cpu: float | None = field(
        default=None,
        validator=at_least(0.125, MAX_CPU),
        metadata=option("CPU cores (Modal).", "number", default="as Modal does", section=HARDWARE),
    )
    memory: int | None = field(
        default=None,
        validator=at_least(128, MAX_MEMORY, is_whole=True),
        metadata=option("Memory in MiB (Modal).", "whole", default="as Modal does", section=HARDWARE),
    )
    region: str | None = field(
        default=None,
        validator=check_optional_text,
        metadata=option("Region, such as us-east (Modal).", default="any", section=HARDWARE),
    )
    cloud: str | None = field(
        default=None,
        validator=check_optional_text,
        metadata=option("Cloud provider, such as aws (Modal).", default="any", section=HARDWARE),
    )
    workdir: str = field(
        default=".",
        metadata=option(
            "Folder in the checkout that the command runs in.", default="the checkout", section=FILES, metavar="FOLDER"
        ),
    )
    app_name: str = field(
        factory=lambda: os.environ.get("MODAL_APP_NAME", "my_skyrl_app"),
        validator=check_name,
        metadata=option(
            "Name of the Modal app.", default="my_skyrl_app", variable="MODAL_APP_NAME", section=NAMES, metavar="NAME"
        ),
    )
    name: str | None = field(
        default=None,
        validator=check_optional_name,
        metadata=option("Name of the run, shown by ps.", default="none", section=NAMES, metavar="NAME"),
    )
    tags: Sequence[str] = field(
        default=(),
        converter=to_strings,
        validator=check_tags,
        metadata=option(
            "Tag of the run, shown by ps.", "list", flag="--tag", default="none", section=NAMES, metavar="TAG"
        ),
    )
    checkout: Path | None = field(
        default=None,
        converter=_to_checkout,
        metadata=option(
            "The SkyRL checkout.",
            "path",
            default="searched for from the working directory upwards",
            variable="SKYRL_REPO_ROOT",
            section=FILES,
        ),
    )
    grace: float = field(
        default=6.0,
        converter=_to_grace,
        metadata=option("Time between the first stop signal and SIGKILL.", "duration", section=LIMITS),
    )
    should_retry: Sequence[int] | None = field(
        default=None,
        converter=to_exit_codes,
        metadata=option(
            "Exit codes to retry after, such as 1,137.", "codes", default="after any failure", section=LIMITS
        ),
    )

    @rdma.validator
    def _check_rdma(self, attribute: Attribute[bool], value: object) -> None:
        check_flag(self, attribute, value)
        if value and self.nodes == 1:
            raise SpecError(
                "rdma",
                value,
                "RDMA connects nodes; pass nodes=2 or more, or omit rdma",
                shell_remedy="RDMA connects nodes; set --nodes to 2 or more, or omit it",
            )

    @secrets.validator
    def _check_secrets(self, attribute: Attribute[Any], value: Sequence[object]) -> None:
        for item in value:
            if isinstance(item, SecretSpec):
                continue
            if not isinstance(item, str) or not item.isidentifier():
                remedy = "pass the names of variables, not their values, or SecretSpec for secrets that Modal stores"
                # The text may be a secret by mistake ("KEY=value"): it is not repeated.
                in_shell = (
                    "pass the name of a variable, not its value; for a secret that Modal stores --modal-secret NAME, "
                    "or in a file a table with its name"
                )
                raise SpecError("secrets", "(not shown)", remedy, shell_remedy=in_shell)

    @workdir.validator
    def _check_workdir(self, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not value or ".." in value.split("/") or "\0" in value:
            raise SpecError("workdir", value, 'pass a folder in the checkout, without "..", such as "skyrl-train"')

    def __attrs_post_init__(self) -> None:
        check_places(self.volumes, self.mounts)
        self._check_variables()

    def _check_variables(self) -> None:
        """Check that no declared variable would be replaced by the run's own, and that all fit into an environment."""
        reasons = variables_of_the_run(
            has_ray=self.ray is not None,
            has_checkout=any(mount.local_path is None for mount in self.mounts),
            has_volume=bool(self.persistent_volumes),
        )
        ray_env = self.ray.env if self.ray is not None else {}
        check_names("env", self.env, reasons)
        check_names("ray.env", ray_env, reasons)
        # An image always has SKYRL_REPO_ROOT, for commands that are executed while it is built.
        of_image = variables_of_the_run(
            has_ray=self.ray is not None, has_checkout=True, has_volume=bool(self.persistent_volumes)
        )
        check_names("image.env", self.image.env, of_image)
        for step in self.image.steps:
            check_names("image.steps", getattr(step, "env", {}), of_image)
        check_names("secrets", self.secret_variables, reasons)
        for secret in self.named_secrets:
            check_names("secrets", secret.keys, reasons)
        declared = {**self.image.env, **self.env, **ray_env}
        check_total("env", sum(check_value("env", name, value) for name, value in declared.items()))

    @property
    def persistent_volumes(self) -> tuple[VolumeSpec, ...]:
        """The volumes without the buckets."""
        return tuple(item for item in self.volumes if isinstance(item, VolumeSpec))

    @property
    def buckets(self) -> tuple[BucketSpec, ...]:
        """The buckets among the volumes."""
        return tuple(item for item in self.volumes if isinstance(item, BucketSpec))

    @property
    def gpu_requests(self) -> tuple[GpuRequest, ...]:
        """The requested GPUs in order of preference; empty for none."""
        return parse_gpu(self.gpu)

    @property
    def secret_variables(self) -> tuple[str, ...]:
        """Names of the secrets that are read from the caller's environment or a .env file."""
        return tuple(
            item if isinstance(item, str) else item.name
            for item in self.secrets
            if isinstance(item, str) or item.source == "environment"
        )

    @property
    def optional_variables(self) -> tuple[str, ...]:
        """Those of ``secret_variables`` that may be missing."""
        required = [item for item in self.secrets if isinstance(item, str)]
        specs = (item for item in self.secrets if isinstance(item, SecretSpec))
        return tuple(
            item.name for item in specs if item.source == "environment" and item.optional and item.name not in required
        )

    @property
    def named_secrets(self) -> tuple[SecretSpec, ...]:
        """Secrets that Modal stores."""
        return tuple(item for item in self.secrets if isinstance(item, SecretSpec) and item.source == "modal")
