"""A system call filter for containers: `pidfd_open` fails with ENOSYS, as with older versions of gVisor."""

from __future__ import annotations

import os
import struct

# <linux/filter.h> and <linux/seccomp.h>; the number of pidfd_open is the same on all architectures.
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
PIDFD_OPEN, ENOSYS = 434, 38
FAIL_WITH, ALLOW = 0x00050000, 0x7FFF0000


def _statement(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def filter_without_pidfd_open() -> int:
    """Return a file descriptor with the filter, for bubblewrap's option --seccomp. The caller closes it."""
    program = [
        _statement(LOAD_WORD, 0, 0, 0),  # offset 0 of struct seccomp_data is the number of the system call
        _statement(JUMP_IF_EQUAL, 0, 1, PIDFD_OPEN),
        _statement(RETURN, 0, 0, FAIL_WITH | ENOSYS),
        _statement(RETURN, 0, 0, ALLOW),
    ]
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(write_end, "wb") as file:
        file.write(b"".join(program))
    return read_end
