"""Failures of GPUs, of vLLM and of the communication between GPUs."""

from __future__ import annotations

from skyrl_modal.skyrl.failures.rule import FailureRule, Weight

_VLLM = "vLLM 0.8 to 0.18"
_TORCH = "torch 2.6 to 2.9"

GPU_RULES = (
    FailureRule(
        code="gpu-out-of-memory",
        cause="A GPU is out of memory.",
        remedy=(
            "In vLLM: reduce generator.inference_engine.gpu_memory_utilization. In training: reduce "
            "micro_train_batch_size_per_gpu, micro_forward_batch_size_per_gpu or max_generate_length."
        ),
        terms=(
            "CUDA out of memory",
            "CUDA error: out of memory",
            "CUDA Error: out of memory",
            "RESOURCE_EXHAUSTED: Out of memory",
            "HIP out of memory",
        ),
        pattern=r"(?:CUDA out of memory|CUDA [Ee]rror: out of memory|RESOURCE_EXHAUSTED: Out of memory"
        r"|HIP out of memory)",
        source="torch/c10/cuda/CUDACachingAllocator.cpp; SkyRL's troubleshooting page; SkyRL PR 2051",
        versions=f"{_TORCH}, JAX 0.5 to 0.8",
    ),
    FailureRule(
        code="no-memory-for-kv-cache",
        cause="vLLM has not enough GPU memory for its KV cache.",
        remedy=(
            "Increase generator.inference_engine.gpu_memory_utilization if the GPU is otherwise free, use more tensor "
            "parallelism, or reduce max_model_len."
        ),
        terms=(
            "No available memory for the cache blocks",
            "GiB KV cache is needed",
            "maximum number of tokens that can be stored",
        ),
        pattern=r"(?:No available memory for the cache blocks|To serve at least one request with|"
        r"The model's max seq len \(\d+\) is larger than the maximum number of tokens that can be stored)",
        source="vllm/v1/core/kv_cache_utils.py",
        versions=_VLLM,
    ),
    FailureRule(
        code="gpu-memory-in-use",
        cause="{free} GiB of {total} GiB GPU memory is free, less than gpu_memory_utilization requires.",
        remedy=(
            "Reduce generator.inference_engine.gpu_memory_utilization, or do not place the trainer and the "
            "engine on the "
            "same GPUs at the same time."
        ),
        terms=("is less than desired GPU memory utilization",),
        pattern=r"Free memory on device [^\n]{0,20}?\(?(?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
        r"less than desired",
        source="vllm/v1/worker/gpu_worker.py",
        versions=_VLLM,
    ),
    FailureRule(
        code="gpu-error",
        cause="A kernel failed on a GPU: {error}.",
        remedy=(
            "Set CUDA_LAUNCH_BLOCKING=1 to see which call fails. An index out of range (a token id larger than the "
            "vocabulary) is the most frequent reason; if other GPUs work, the GPU may be defective."
        ),
        terms=("CUDA error: ", "device-side assert triggered"),
        pattern=r"CUDA error: (?P<error>an illegal memory access was encountered|device-side assert triggered"
        r"|unspecified launch failure|misaligned address|uncorrectable ECC error encountered"
        r"|an illegal instruction was encountered)",
        source="torch/c10/cuda/CUDAException.cpp",
        versions=_TORCH,
    ),
    FailureRule(
        code="gpu-image-mismatch",
        cause="The installed torch has no kernels for this type of GPU.",
        remedy="Use an image whose CUDA and torch support the GPU, or request another type of GPU.",
        terms=("no kernel image is available for execution on the device",),
        pattern=r"CUDA error: no kernel image is available for execution on the device",
        source="torch/c10/cuda/CUDAException.cpp",
        versions=_TORCH,
    ),
    FailureRule(
        code="gpu-driver-not-initialized",
        cause="The driver of the GPU is not initialized, or there is no GPU.",
        remedy="Start the run again: it gets another container. If it happens each time, check the requested "
        "GPU and the image's CUDA.",
        terms=(
            "No CUDA GPUs are available",
            "CUDA driver initialization failed",
            "Found no NVIDIA driver",
            "CUDA unknown error",
            "CUDA driver version is insufficient",
            "couldn't communicate with the NVIDIA driver",
            "Driver/library version mismatch",
            "Failed to initialize NVML",
            "The NVIDIA driver on your system is too old",
        ),
        pattern=r"(?:No CUDA GPUs are available|CUDA driver initialization failed|Found no NVIDIA driver"
        r"|CUDA unknown error"
        r"|(?:CUDA error: )?CUDA driver version is insufficient|NVIDIA-SMI has failed because it couldn't communicate"
        r"|(?:Failed to initialize NVML: )?Driver/library version mismatch|Failed to initialize NVML"
        r"|The NVIDIA driver on your system is too old)",
        source="torch/cuda/__init__.py; nvidia-smi; Modal's guide about L4",
        versions=_TORCH,
    ),
    FailureRule(
        code="gpu-lost",
        cause="The driver reports that GPU {pci} failed (Xid {xid}).",
        remedy="Start the run again with resume_mode=latest: it gets another machine. The GPU is defective.",
        terms=("NVRM: Xid",),
        pattern=r"(?:\[ *[\d.]+\] )?NVRM: Xid \((?:PCI:)?(?P<pci>[^)\n]{1,40})\): (?P<xid>48|62|63|64|74|79"
        r"|92|94|95|119|120|140)\b",
        files=("machine/kernel.log",),
        source="NVIDIA's list of Xid errors",
    ),
    FailureRule(
        code="wheel-mismatch",
        cause="The compiled module {path} was built for another version of CUDA or torch.",
        remedy="Use an image with the CUDA of the checkout's lock file (cu12.8 or cu13.0), and do not mix wheels.",
        terms=("undefined symbol: ",),
        pattern=r"(?P<path>[^\s:]{1,300}\.so[\w.]*): undefined symbol: ",
        source="the loader of glibc",
    ),
    FailureRule(
        code="shared-library-missing",
        cause="The library {library} is not in the image.",
        remedy="Install the package that contains it (ImageSpec.steps with AptInstall), or use SkyRL's image.",
        terms=("cannot open shared object file",),
        pattern=r"(?P<library>[\w.+-]{1,100}\.so[\w.]*): cannot open shared object file",
        source="the loader of glibc",
    ),
    FailureRule(
        code="engine-not-started",
        cause="vLLM did not start. Its own message does not contain the reason.",
        remedy=(
            "Look at skyrl-logs/infra-*.log and ray/worker-*.err of all ranks (skyrl-modal logs --list). "
            "Most often it is GPU "
            "memory: reduce gpu_memory_utilization."
        ),
        terms=("Engine core initialization failed", "Engine process failed to start"),
        pattern=r"(?:Engine core initialization failed|Engine process failed to start)",
        weight=Weight.CONSEQUENCE,
        source="vllm/v1/engine/utils.py; SkyRL issues 87 and 1673",
        versions=_VLLM,
    ),
    FailureRule(
        code="engine-died",
        cause="vLLM ended while it was in use.",
        remedy="Look at skyrl-logs/infra-*.log and ray/worker-*.err of all ranks for its first error.",
        terms=("EngineDeadError", "EngineCore encountered an issue", "EngineCore encountered a fatal error"),
        pattern=r"(?:(?<=EngineDeadError: )|EngineCore encountered (?:an issue|a fatal error))",
        weight=Weight.CONSEQUENCE,
        source="vllm/v1/engine/exceptions.py",
        versions=_VLLM,
    ),
    FailureRule(
        code="server-not-healthy",
        cause="The inference server did not become ready within {seconds} s.",
        remedy=(
            "Keep the model's cache (HF_HOME) on a volume, increase "
            "SKYRL_WAIT_UNTIL_INFERENCE_SERVER_HEALTHY_TIMEOUT_S, "
            "and look at skyrl-logs/infra-*.log: the engine may have ended."
        ),
        terms=("failed to become healthy",),
        pattern=r"(?:Server|VLLMRouter) failed to become healthy within (?P<seconds>\d+(?:\.\d+)?) ?s",
        weight=Weight.CONSEQUENCE,
        source="skyrl/backends/skyrl_train/inference_servers/vllm_server_actor.py:319, vllm_router.py:160",
        versions="SkyRL of August 2026",
    ),
)

COMMUNICATION_RULES = (
    FailureRule(
        code="duplicate-gpu",
        cause="Two ranks use the same GPU, or report the same host.",
        remedy=("Do not copy rank 0's NCCL_HOSTID to other ranks, and request as many GPUs as trainer.placement uses."),
        terms=("Duplicate GPU detected",),
        pattern=r"(?:[^\n]{0,200}?)Duplicate GPU detected",
        any_level=True,
        source="nccl/src/init.cc; SkyRL issue 1398",
        versions="NCCL 2.20 to 2.28",
    ),
    FailureRule(
        code="collective-timeout",
        cause="A collective operation of NCCL did not end in time: another rank failed, or was late.",
        remedy=(
            "Look for the first error of another rank. If all are alive, increase "
            "SKYRL_WORKER_NCCL_TIMEOUT_IN_S and test the "
            "network with scripts/multi_node_nccl_test.py."
        ),
        terms=("Watchdog caught collective operation timeout",),
        pattern=r"(?:\[[^\]\n]{1,150}\] ){0,3}(?:(?:NCCL|Process group) watchdog thread terminated with exception: )?"
        r"(?:\[Rank \d+\] )?Watchdog caught collective operation timeout",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp; SkyRL issues 667 and 757",
        versions=_TORCH,
    ),
    FailureRule(
        code="nccl-error",
        cause="NCCL failed.",
        remedy="Look for the first error of another rank; set NCCL_DEBUG=INFO, and test with "
        "scripts/multi_node_nccl_test.py.",
        terms=(
            "ncclSystemError",
            "ncclUnhandledCudaError",
            "ncclInternalError",
            "ncclRemoteError",
            "ncclInvalidUsage",
            "NCCL error in",
        ),
        pattern=r"(?:NCCL error in|(?:nccl(?:SystemError|UnhandledCudaError|InternalError|RemoteError|InvalidUsage)))",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="torch/csrc/distributed/c10d/NCCLUtils.cpp; SkyRL issue 757",
        versions=_TORCH,
    ),
    FailureRule(
        code="rendezvous-timeout",
        cause="Not all ranks of a process group connected in time.",
        remedy="Look for the first error of another rank, and check MASTER_ADDR and the network between the nodes.",
        terms=("DistStoreError", "DistNetworkError"),
        pattern=r"(?:(?<=DistStoreError: )|(?<=DistNetworkError: )(?!.{0,200}EADDRINUSE))",
        weight=Weight.POSSIBLE_CONSEQUENCE,
        source="torch/distributed/rendezvous.py",
        versions=_TORCH,
    ),
)
