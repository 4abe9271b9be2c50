"""The GPUs of this container: how many there are, and whether their driver works.

The driver of a GPU does not always initialize on Modal (https://modal.com/docs/guide/gpu-health). Two programs run at
the same time. ``nvidia-smi`` lists the GPUs, by NVML. A child process calls ``cuInit``, which can fail although NVML
works; the process exits, so no state of CUDA remains here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.machine import visible_gpu_count
from skyrl_modal.protocol.rank_config import RankConfig

#: Seconds after which a program that does not exit is considered to have failed: a broken driver can block it.
PROGRAM_TIMEOUT = 60.0
#: Seconds to wait for a program that was killed. A process in a system call of the driver may not end.
KILL_TIMEOUT = 2.0
#: Characters of a program's output that are quoted.
MAX_QUOTE = 300
_LIST_COMMAND = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
#: Errors of ``cuInit`` that another machine may not have: not initialized, device unavailable, no device, invalid
#: device, system not ready, unknown. Others are caused by the image: a library that does not fit to the driver.
#: (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html)
_MACHINE_ERRORS = frozenset((3, 46, 100, 101, 802, 999))
#: Prints the result of ``cuInit``, the number of devices and the name of the error; nothing if there is no library.
_CUDA_PROGRAM = """
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    raise SystemExit
count, name = ctypes.c_int(), ctypes.c_char_p()
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
cuda.cuGetErrorName(code, ctypes.byref(name))
print(code, count.value, (name.value or b"?").decode("ascii", "replace"))
"""
_CUDA_RESULT = re.compile(rb"([0-9]{1,9}) ([0-9]{1,9}) (\S{1,100})\s*")
_DEVICE = re.compile(r"nvidia[0-9]+")


@dataclass(frozen=True, slots=True)
class GpuCount:
    """The GPUs of a container.

    Attributes:
        count: Number of GPUs that work, as far as it is known.
        problem: What failed; empty if nothing did.
    """

    count: int
    problem: str = ""


class GpuProbe:
    """Counts the GPUs of this container, while the caller does other things.

    Args:
        timeout: Seconds after which a program has failed.
    """

    def __init__(self, timeout: float = PROGRAM_TIMEOUT) -> None:
        self._timeout = timeout
        self._deadline = 0.0
        self._list = start_program(_LIST_COMMAND, stderr=subprocess.STDOUT)
        self._cuda = start_program((sys.executable, "-IS", "-c", _CUDA_PROGRAM), stderr=subprocess.DEVNULL)
        self._found: GpuCount | None = None

    @classmethod
    def if_requested(cls, requested: int | None) -> Self | None:
        """Return a probe if GPUs were requested, or if their number is not known; else None."""
        return None if requested == 0 else cls()

    def result(self) -> GpuCount:
        """Wait for the programs, and return what they found."""
        if self._found is None:
            # It counts from here on, so that a program that has ended meanwhile is never late.
            self._deadline = time.monotonic() + self._timeout
            listed, cuda = self._read_list(), self._read_cuda()
            if listed is None:
                self._found = cuda or GpuCount(_device_count())
            else:
                self._found = cuda if cuda is not None and cuda.problem and not listed.problem else listed
        return self._found

    def apply_to(self, config: RankConfig) -> RankConfig:
        """Return the configuration of a rank with what was found."""
        found = self.result()
        return replace(config, gpus=found.count, gpu_problem=found.problem)

    def _read_list(self) -> GpuCount | None:
        """Return what nvidia-smi lists; None if there is no such program."""
        if self._list is None:
            return None
        output = end_program(self._list, self._deadline)
        if output is None:
            return GpuCount(0, f"nvidia-smi did not exit within {self._timeout:g} s")
        # It can fail for one GPU, or exit with a warning (14: a damaged infoROM), and list others that work.
        count, code = parse_gpu_list(output), self._list.returncode
        quote = _quote(output)
        return GpuCount(count, f"nvidia-smi failed with exit code {code}{': ' if quote else ''}{quote}" if code else "")

    def _read_cuda(self) -> GpuCount | None:
        """Return what CUDA reports; None if it reports nothing, or an error that another machine has as well."""
        if self._cuda is None:
            return None
        output = end_program(self._cuda, self._deadline)
        if output is None:
            return GpuCount(0, f"cuInit did not return within {self._timeout:g} s")
        return parse_cuda_result(output)


def count_gpus() -> int:
    """Return the number of GPUs of this container that work."""
    return GpuProbe().result().count


def parse_gpu_list(output: bytes) -> int:
    r"""Return the number of GPUs in the output of ``nvidia-smi --query-gpu=index``: one index in each line.

    Example:
        >>> parse_gpu_list(b"0\n1\n"), parse_gpu_list(b"No devices were found\n")
        (2, 0)
    """
    lines = (line.strip() for line in output.splitlines())
    return len({line for line in lines if line.isdigit() and len(line) <= len("9999")})


def parse_cuda_result(output: bytes) -> GpuCount | None:
    r"""Return what CUDA has reported; None if nothing follows from it for this machine.

    Example:
        >>> parse_cuda_result(b"0 2 CUDA_SUCCESS\n").count
        2
        >>> parse_cuda_result(b"999 0 CUDA_ERROR_UNKNOWN\n").problem
        'cuInit failed with CUDA_ERROR_UNKNOWN'
    """
    match = _CUDA_RESULT.fullmatch(output)
    if match is None:
        return None
    code, count = int(match[1]), int(match[2])
    if code in _MACHINE_ERRORS:
        return GpuCount(0, f"cuInit failed with {match[3].decode('ascii', 'replace')}")
    return None if code else GpuCount(count)


def start_program(command: Sequence[str], *, stderr: int) -> subprocess.Popen[bytes] | None:
    """Start a program; return None if it does not exist."""
    # An image may hide devices from its own programs.
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
    except OSError:
        return None


def end_program(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Return the output of a program; None if it does not exit before a time of ``time.monotonic()``."""
    try:
        return process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT)
        return None


def _device_count() -> int:
    """Return the number of GPUs without nvidia-smi: the visible ones, else the devices of the driver."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return visible_gpu_count()
    with contextlib.suppress(OSError):
        devices = sum(1 for path in Path("/dev").iterdir() if _DEVICE.fullmatch(path.name))
        if devices:
            return devices
    return visible_gpu_count()


def _quote(output: bytes) -> str:
    """Return the printable text of a program's output in one line."""
    text = " ".join(output[: 4 * MAX_QUOTE].decode("ascii", "replace").split())
    return "".join(character for character in text if character.isprintable())[:MAX_QUOTE]
