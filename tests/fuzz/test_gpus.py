"""The output of nvidia-smi and of the CUDA program: whatever they print, it is read as a number of GPUs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.container.gpus import MAX_QUOTE, GpuProbe, parse_cuda_result, parse_gpu_list
from tests.fuzz.inputs import HOSTILE, fuzz_settings

#: Lines as nvidia-smi prints them, and lines that resemble them.
LINES = [
    b"0", b"1", b"7", b" 12 ", b"0\r", b"[Unknown Error]", b"[GPU requires reset]", b"No devices were found", b"index",
    b"-1", b"+1", b"1e3", b"0x1", b"1_0", b"\xd9\xa3", b"\xc2\xb2", b"9" * 5000, b"0, 1", b"0\x00", b"\x1b[0m0", b"",
    b"WARNING: infoROM is corrupted at gpu 0000:00:1E.0", b"0 0 CUDA_SUCCESS", b"999 0 CUDA_ERROR_UNKNOWN",
]  # fmt: skip
outputs = (
    st.binary(max_size=300)
    | st.sampled_from(HOSTILE)
    | st.lists(st.sampled_from(LINES) | st.binary(max_size=20), max_size=12).map(b"\n".join)
)
indexes = st.sets(st.integers(0, 63), max_size=16)


@fuzz_settings
@given(output=outputs)
def test_any_list_is_a_number_of_gpus(output: bytes) -> None:
    """Any output is a number of GPUs that is not larger than the number of its lines."""
    assert 0 <= parse_gpu_list(output) <= len(output.splitlines())


@fuzz_settings
@given(found=indexes, between=st.lists(st.sampled_from([b"", b"[Unknown Error]", b"WARNING: x"]), max_size=3))
def test_each_index_counts_once(found: set[int], between: list[bytes]) -> None:
    """Each GPU counts once, in any order, and with other lines in between."""
    lines = [line for index in sorted(found, reverse=True) for line in (b"%d" % index, *between)]

    assert parse_gpu_list(b"\r\n".join(lines * 2)) == len(found)


@fuzz_settings
@given(output=outputs)
def test_any_result_of_cuda_is_read(output: bytes) -> None:
    """Any output of the CUDA program is read, and a problem is one printable line."""
    found = parse_cuda_result(output)

    assert found is None or (found.count >= 0 and found.problem.isprintable())


@fuzz_settings
@given(output=outputs, code=st.integers(0, 255))
def test_any_nvidia_smi_is_survived(tmp_path: Path, output: bytes, code: int) -> None:
    """A program in the place of nvidia-smi may print anything and exit with any code."""
    (tmp_path / "output").write_bytes(output)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat '{tmp_path}/output'\nexit {code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{path}"
    try:
        found = GpuProbe().result()
    finally:
        os.environ["PATH"] = path

    assert found.count == parse_gpu_list(output)
    assert bool(found.problem) is (code != 0)
    assert found.problem.isprintable()
    assert len(found.problem) < MAX_QUOTE + 60
