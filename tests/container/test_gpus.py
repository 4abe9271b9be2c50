"""Tests of the count of GPUs, with programs in the place of the driver's, and a library in the place of libcuda."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.container.gpus import MAX_QUOTE, GpuCount, GpuProbe, count_gpus, parse_cuda_result
from skyrl_modal.protocol.rank_config import RankConfig

#: Output of nvidia-smi if the driver is not initialized; its exit code is 9.
DRIVER_FAILURE = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts a shell script in the place of nvidia-smi."""

    def create(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return create


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf '0\\n1\\n'", GpuCount(2)),
        (":", GpuCount(0)),
        ("echo No devices were found", GpuCount(0)),
        ("printf '0\\r\\n 1 \\n'", GpuCount(2)),
        ("printf '0\\n[Unknown Error]\\n2\\n'", GpuCount(2)),
        ("echo 0; echo 'WARNING: infoROM is corrupted at gpu 0000:00:1E.0' >&2", GpuCount(1)),
        (f'echo "{DRIVER_FAILURE}"; exit 9', GpuCount(0, f"nvidia-smi failed with exit code 9: {DRIVER_FAILURE}")),
        ("exit 255", GpuCount(0, "nvidia-smi failed with exit code 255")),
        ("kill -9 $$", GpuCount(0, "nvidia-smi failed with exit code -9")),
    ],
)
def test_gpus_are_counted_by_nvidia_smi(nvidia_smi: Callable[[str], None], script: str, expected: GpuCount) -> None:
    """Each line with an index counts as one GPU. A failure is described by the output of the program."""
    nvidia_smi(script)

    assert GpuProbe().result() == expected


def test_failure_of_one_gpu_leaves_the_others(nvidia_smi: Callable[[str], None]) -> None:
    """GPUs that are listed count also if nvidia-smi exits with a warning, such as 14 for a damaged infoROM."""
    nvidia_smi("printf '0\\n1\\n'; exit 14")

    assert GpuProbe().result().count == 2


def test_quote_is_short_and_printable(nvidia_smi: Callable[[str], None]) -> None:
    """Of a failed program's output, a limited number of printable characters is quoted."""
    nvidia_smi("printf '\\033[31m\\377'; seq -s x 5000; exit 3")

    found = GpuProbe().result()

    assert found.problem.startswith("nvidia-smi failed with exit code 3: ")
    assert found.problem.isprintable()
    assert len(found.problem) < MAX_QUOTE + 50


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60 & wait", "trap '' TERM INT; while :; do sleep 1; done"])
def test_program_that_hangs_is_killed(nvidia_smi: Callable[[str], None], script: str) -> None:
    """A broken driver may block nvidia-smi: then no GPU counts, and the program and its children are killed."""
    nvidia_smi(script)
    begin = time.monotonic()

    found = GpuProbe(timeout=0.5).result()

    assert found == GpuCount(0, "nvidia-smi did not exit within 0.5 s")
    assert time.monotonic() - begin < 30


def test_late_question_does_not_make_a_program_late(nvidia_smi: Callable[[str], None]) -> None:
    """A program that has ended before its result is read is not considered to hang."""
    nvidia_smi("echo 0")
    probe = GpuProbe(timeout=0.5)
    assert probe._list is not None
    probe._list.wait(30)

    assert probe.result() == GpuCount(1)


def test_gpus_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi, the visible devices are counted."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")

    assert count_gpus() == 3


def test_no_probe_without_gpus() -> None:
    """Nothing is run if no GPU was requested; an unknown number is counted."""
    assert GpuProbe.if_requested(0) is None
    assert GpuProbe.if_requested(None) is not None


def test_result_is_part_of_the_rank(nvidia_smi: Callable[[str], None]) -> None:
    """The rank's configuration has the number of GPUs and the problem."""
    nvidia_smi("exit 9")

    config = GpuProbe().apply_to(RankConfig())

    assert (config.gpus, config.gpu_problem) == (0, "nvidia-smi failed with exit code 9")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"0 1 CUDA_SUCCESS\n", GpuCount(1)),
        (b"999 0 CUDA_ERROR_UNKNOWN\n", GpuCount(0, "cuInit failed with CUDA_ERROR_UNKNOWN")),
        (b"802 0 CUDA_ERROR_SYSTEM_NOT_READY\n", GpuCount(0, "cuInit failed with CUDA_ERROR_SYSTEM_NOT_READY")),
        (b"803 0 CUDA_ERROR_SYSTEM_DRIVER_MISMATCH\n", None),
        (b"34 0 CUDA_ERROR_STUB_LIBRARY\n", None),
        (b"", None),
        (b"Segmentation fault", None),
    ],
)
def test_result_of_cuda(output: bytes, expected: GpuCount | None) -> None:
    """Errors of the machine count. Errors of the image, and what cannot be read, are left to the command."""
    assert parse_cuda_result(output) == expected


@pytest.fixture
def cuda_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that builds a libcuda.so.1 whose ``cuInit`` has the given body."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler")

    def build(body: str) -> None:
        source = tmp_path / "cuda.c"
        source.write_text(
            "#include <stdlib.h>\n#include <unistd.h>\n"
            f"int cuInit(unsigned flags) {{ {body} }}\n"
            'int cuDeviceGetCount(int *count) { *count = getenv("CUDA_VISIBLE_DEVICES") ? 0 : 2; return 0; }\n'
            'int cuGetErrorName(int code, char **name) { *name = code ? "CUDA_ERROR" : "CUDA_SUCCESS"; return 0; }\n'
        )
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return build


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 0;", GpuCount(2)),
        ("return 999;", GpuCount(0, "cuInit failed with CUDA_ERROR")),
        ("return 803;", GpuCount(2)),
        ("abort();", GpuCount(2)),
        ("sleep(60); return 0;", GpuCount(0, "cuInit did not return within 2 s")),
    ],
)
def test_cuda_is_initialized(
    nvidia_smi: Callable[[str], None], cuda_library: Callable[[str], None], body: str, expected: GpuCount
) -> None:
    """A GPU whose driver CUDA cannot initialize does not count, although nvidia-smi lists it."""
    nvidia_smi("printf '0\\n1\\n'")
    cuda_library(body)

    assert GpuProbe(timeout=2).result() == expected


def test_cuda_counts_without_nvidia_smi(cuda_library: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi, CUDA counts the devices, including those that the image hides from its programs."""
    cuda_library("return 0;")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert count_gpus() == 2
