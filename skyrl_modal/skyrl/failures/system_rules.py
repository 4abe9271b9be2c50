"""Failures of the machine, of Ray and of uv."""

from __future__ import annotations

from skyrl_modal.skyrl.failures.rule import FailureRule, Weight

_RAY = "Ray 2.48 to 2.60"
_UV = "uv 0.5 to 0.11"

MACHINE_RULES = (
    FailureRule(
        code="host-out-of-memory",
        cause="The machine is out of memory (RAM, not GPU memory), and processes were killed.",
        remedy=(
            "Request more memory (memory=..., --memory), use fewer workers for environments and data, or a "
            "smaller model for "
            "each node. Ray's object store counts too."
        ),
        terms=(
            "memory pressure",
            "OutOfMemoryError",
            "running low on memory",
            "oom-kill",
            "ut of memory",
            '"oom_kill": ',
        ),
        pattern=r"(?:[^\n]{0,200}?killed due to (?:the node running low on memory|memory pressure)"
        r"|\d+ Workers? \(tasks / actors\) killed due to memory pressure"
        r"|(?<=ray\.exceptions\.OutOfMemoryError: )|Task was killed due to the node running low on memory"
        r"|(?:\[ *[\d.]+\] )?(?:oom-kill:|(?:Memory cgroup out|Out) of memory: Killed process \d+)"
        r'|\{"time"[^\n]{0,600}"oom_kill": [1-9])',
        any_level=True,
        source="ray/src/ray/raylet/worker_killing_policy*.cc; Linux mm/oom_kill.c, cgroup-v2; SkyRL issue 292",
        versions=_RAY,
    ),
    FailureRule(
        code="python-out-of-memory",
        cause="A process could not allocate memory (RAM).",
        remedy="Request more memory (memory=..., --memory), or use smaller batches and fewer workers.",
        terms=("MemoryError", "Cannot allocate memory", "std::bad_alloc"),
        pattern=r"(?:(?<=MemoryError: )|MemoryError$|\[Errno 12\] Cannot allocate memory"
        r"|(?:bash: )?fork: Cannot allocate memory"
        r"|(?:terminate called after throwing an instance of ')?std::bad_alloc)",
        source="Python's built-in exceptions; errno(3)",
    ),
    FailureRule(
        code="killed",
        cause="The command was ended by SIGKILL. That is most often the kernel's reaction to a lack of memory.",
        remedy="Look at machine/memory.jsonl and machine/kernel.log; request more memory (memory=..., --memory).",
        returncodes=frozenset((137,)),
        weight=Weight.CONSEQUENCE,
        source="signal(7)",
    ),
    FailureRule(
        code="aborted",
        cause="A process was ended by SIGABRT. With much free GPU memory, it is fragmentation of the GPU's memory.",
        remedy="Set trainer.policy.fsdp_config.use_expandable_segments or "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; look for the first error before this line.",
        terms=("Fatal Python error: Aborted", "Aborted", "SIGABRT received"),
        pattern=r"(?:Fatal Python error: Aborted|(?:bash: line \d+: +\d+ |/bin/\w+: line \d+: +\d+ )?Aborted\b"
        r"|\*\*\* SIGABRT received)",
        returncodes=frozenset((134, 1)),
        weight=Weight.CONSEQUENCE,
        source="SkyRL's troubleshooting page; faulthandler",
    ),
    FailureRule(
        code="segmentation-fault",
        cause="A process was ended by SIGSEGV: an error in compiled code.",
        remedy="Check that wheels and image have the same CUDA and torch; the Python stack after this line "
        "shows the call.",
        terms=("Segmentation fault", "SIGSEGV received"),
        pattern=r"(?:Fatal Python error: Segmentation fault|(?:[\w/]{1,40}: line \d+: +\d+ )?Segmentation fault\b"
        r"|\*\*\* SIGSEGV received)",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="faulthandler; absl/debugging/failure_signal_handler",
    ),
    FailureRule(
        code="shared-memory-full",
        cause="Shared memory (/dev/shm) is full or too small.",
        remedy="Use fewer data workers, or a smaller object store of Ray.",
        terms=("insufficient shared memory (shm)", "Unexpected bus error", "Bus error"),
        pattern=r"(?:[^\n]{0,200}?insufficient shared memory \(shm\)|Unexpected bus error"
        r"|(?:[\w/]{1,40}: line \d+: +\d+ )?Bus error\b|Fatal Python error: Bus error)",
        source="torch/utils/data/_utils/signal_handling.py",
    ),
    FailureRule(
        code="disk-full",
        cause="A disk is full.",
        remedy=(
            "Write checkpoints to a volume (trainer.ckpt_path), keep fewer of them "
            "(trainer.max_ckpts_to_keep), and move "
            "Ray's spilled objects and HF_HOME from the container's disk."
        ),
        terms=("No space left on device", "OutOfDiskError", "no space left on device", "Disk quota exceeded"),
        pattern=r"(?:\[Errno 28\] No space left on device|\[Errno 122\] Disk quota exceeded|(?<=OutOfDiskError: )"
        r""
        r"|[^\n|`]{0,300}?: (?:[Nn]o space left on device|Disk quota exceeded)(?: \(os error \d+\))?\.?$"
        r"|No space left on device)",
        source="errno(3); ray/exceptions.py",
    ),
    FailureRule(
        code="disk-nearly-full",
        cause="A disk with Ray's files is nearly full, and Ray creates no more objects.",
        remedy="Write checkpoints to a volume, and keep fewer of them (trainer.max_ckpts_to_keep).",
        terms=("Object creation will fail if spilling is required",),
        pattern=r"[^\n]{0,200}? is over \d+% full",
        any_level=True,
        weight=Weight.CONSEQUENCE,
        source="ray/src/ray/common/file_system_monitor.cc",
        versions=_RAY,
    ),
    FailureRule(
        code="too-many-open-files",
        cause="A process has too many open files.",
        remedy="Increase the limit (ulimit -n) at the beginning of the command, or reduce the concurrency of "
        "the generator.",
        terms=("Too many open files",),
        pattern=r"(?:\[Errno 24\] |[^\n]{0,200}?: )?Too many open files",
        source="errno(3)",
    ),
    FailureRule(
        code="port-in-use",
        cause="A port is already in use, often by a process of an earlier attempt.",
        remedy="Use another port, or end the process that has it. With several attempts, look at why the "
        "first one failed.",
        terms=("ddress already in use", "EADDRINUSE"),
        pattern=r"(?:\[Errno 98\] |The server socket has failed to (?:listen|bind)[^\n]{0,300}?EADDRINUSE"
        r"|(?:[\w./-]{1,60}: )?(?:listen|bind|Failed to bind|Cannot bind|listen EADDRINUSE)\b[^\n]{0,200}?"
        r"[Aa]ddress already in use)",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="errno(3); torch/csrc/distributed/c10d/socket.cpp; SkyRL issue 284",
    ),
    FailureRule(
        code="program-missing",
        cause="The program {program} is not installed where the command runs, or not on PATH.",
        remedy="Check the spelling, and install it in the image (ImageSpec.steps).",
        terms=("not found", "No such file or directory"),
        pattern=r"(?:/?[\w./-]{1,100}: )(?:line )?(?:\d+: )?(?P<program>[\w./+-]{1,100}): (?:command not "
        r"found|not found"
        r"|No such file or directory)$",
        returncodes=frozenset((127, 126)),
        source="bash, dash",
    ),
    FailureRule(
        code="module-missing",
        cause="The Python module {module} is not installed in the environment of the command.",
        remedy="Add the extra that contains it (uv run --extra ...), or run the command in the checkout's "
        "environment with uv run.",
        terms=("No module named ",),
        pattern=r"(?:[^\s:]{1,200}: )?(?:Error while finding module specification for '[^'\n]{1,100}' "
        r"\(ModuleNotFoundError: )?"
        r"No module named '?(?P<module>[\w.]{1,100})'?",
        source="Python's import system",
    ),
)

RAY_RULES = (
    FailureRule(
        code="placement-group-too-large",
        cause="SkyRL asked Ray for {gpus} GPUs, and the cluster does not have them free.",
        remedy=(
            "Request that many GPUs (gpu=..., --gpu), or reduce NUM_GPUS, trainer.placement.*_num_gpus_per_node and "
            "generator.inference_engine.num_engines x tensor_parallel_size."
        ),
        terms=("Failed to create placement group with",),
        pattern=r"Failed to create placement group with (?P<bundles>\d+) bundles? \(requiring (?P<gpus>[\d.]+) GPUs",
        source="skyrl/train/utils/utils.py:930",
        versions="SkyRL of August 2026",
    ),
    FailureRule(
        code="ray-version-mismatch",
        cause="The command uses another version of Ray or Python than the cluster.",
        remedy="Use the image with the Ray that the checkout pins, or install that version locally "
        "(skyrl-modal doctor).",
        terms=("Version mismatch: The cluster was started with",),
        pattern=r"Version mismatch: The cluster was started with",
        source="ray/_private/utils.py: check_version_info",
        versions=_RAY,
    ),
    FailureRule(
        code="ray-token-refused",
        cause="Ray refuses the token of the command.",
        remedy="Do not change RAY_AUTH_MODE and RAY_AUTH_TOKEN in the command: the run's Ray has a token of its own.",
        terms=("InvalidAuthToken", "AuthenticationError"),
        pattern=r"(?:[^\n]{0,200}?InvalidAuthToken|(?<=ray\.exceptions\.AuthenticationError: ))",
        source="ray/exceptions.py",
        versions="Ray 2.52 to 2.60",
    ),
    FailureRule(
        code="runtime-env-failed",
        cause="Ray could not create the environment of its workers.",
        remedy="Look at ray/runtime_env_setup-*.log. With uv run, the project must be complete in the "
        "working directory.",
        terms=("RuntimeEnvSetupError",),
        pattern=r"(?<=RuntimeEnvSetupError: )",
        source="ray/exceptions.py",
        versions=_RAY,
    ),
    FailureRule(
        code="ray-workers-not-registered",
        cause="Ray's workers did not start in time: uv run in the workers is slow or fails.",
        remedy="Set RAY_worker_register_timeout_seconds=600 before Ray starts, keep uv's cache on a volume, "
        "and check --env-file.",
        terms=("have not registered within the timeout",),
        pattern=r"[^\n]{0,200}?have not registered within the timeout",
        any_level=True,
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="ray/src/ray/raylet/worker_pool.cc; SkyRL issue 224",
        versions=_RAY,
    ),
    FailureRule(
        code="ray-not-found",
        cause="The command found no Ray cluster.",
        remedy="Run the command with Ray (ray=RaySpec(), without --no-ray), and do not call ray stop in it.",
        terms=(
            "Could not find any running Ray instance",
            "Failed to connect to Ray cluster",
            "Failed to connect to GCS",
        ),
        pattern=r"(?:Could not find any running Ray instance|Failed to connect to (?:Ray cluster|GCS))",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="ray/_private/services.py",
        versions=_RAY,
    ),
    FailureRule(
        code="ray-actor-died",
        cause="A process of Ray ended: {reason}.",
        remedy="Look for its first error in ray/worker-*.err and skyrl-logs/infra-*.log of all ranks.",
        terms=("ActorDiedError", "RayActorError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError"),
        pattern=r"(?:(?<=ActorDiedError: )|(?<=RayActorError: )|(?<=WorkerCrashedError: )|(?<=NodeDiedError: )"
        r"|(?<=LocalRayletDiedError: ))(?P<reason>[^\n.]{1,200})",
        weight=Weight.CONSEQUENCE,
        source="ray/exceptions.py",
        versions=_RAY,
    ),
)

UV_RULES = (
    FailureRule(
        code="uv-lock-outdated",
        cause="uv.lock does not match pyproject.toml.",
        remedy="Run uv lock in the checkout, and start the run again.",
        terms=("needs to be updated, but",),
        pattern=r"(?:error: )?The lockfile at `uv\.lock` needs to be updated, but `--(?:locked|frozen|check)`",
        source="uv/crates/uv/src/commands/project/lock.rs",
        versions=_UV,
    ),
    FailureRule(
        code="uv-no-solution",
        cause="uv finds no versions of the packages that fit together.",
        remedy="Read the explanation after this line: most often the Python version, or a package without a "
        "wheel for this platform.",
        terms=("No solution found when resolving",),
        pattern=r"(?:error: )?No solution found when resolving",
        source="uv/crates/uv-resolver/src/error.rs",
        versions=_UV,
    ),
    FailureRule(
        code="uv-build-failed",
        cause="uv could not build {package}.",
        remedy="Use an image with the wheels of the lock file, or install the compilers and headers that the "
        "build needs.",
        terms=("Failed to build `", "Failed to download and build `"),
        pattern=r"(?:error: )?Failed to (?:download and )?build `(?P<package>[^`\n]{1,200})`",
        source="uv/crates/uv-distribution",
        versions=_UV,
    ),
    FailureRule(
        code="uv-download-failed",
        cause="uv could not download a file.",
        remedy="Check the network and the index. A mirror or UV_INDEX_URL may be missing in the container.",
        terms=("Failed to fetch: `", "Failed to download `", "error sending request for url"),
        pattern=r"(?:error: )?(?:Failed to (?:fetch:|download) `[^`\n]{1,200}`"
        r"|error sending request for url)",
        source="uv/crates/uv-client/src/error.rs",
        versions=_UV,
    ),
    FailureRule(
        code="uv-program-missing",
        cause="uv run cannot start {program}: the environment does not contain it.",
        remedy="Check the spelling, and add the package or extra that contains it.",
        terms=("Failed to spawn: `",),
        pattern=r"(?:error: )?Failed to spawn: `(?P<program>[^`\n]{1,200})`",
        source="uv/crates/uv/src/commands/project/run.rs",
        versions=_UV,
    ),
    FailureRule(
        code="env-file-missing",
        cause="uv run --env-file names {path}, which does not exist where the command runs.",
        remedy="Ignored files such as .env are not sent: pass its variables as secrets, or include the file.",
        terms=("No environment file found at",),
        pattern=r"(?:error: )?No environment file found at: `(?P<path>[^`\n]{1,300})`",
        source="uv/crates/uv/src/commands/project/run.rs",
        versions=_UV,
    ),
    FailureRule(
        code="uv-failed",
        cause="uv failed: {reason}.",
        remedy="Read the lines after this one.",
        terms=("error: ",),
        pattern=r"error: (?P<reason>(?:Failed to|No `pyproject\.toml`|Project virtual environment|Extra `"
        r"|Group `|Could not|"
        r"Requested Python version|No interpreter found|Distribution )[^\n]{1,200})",
        returncodes=frozenset((1, 2)),
        weight=Weight.CONSEQUENCE,
        source="uv/crates/uv/src/commands",
        versions=_UV,
    ),
)
