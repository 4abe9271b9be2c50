"""Run a program for which ``pidfd_open`` fails: ``python -m tests.support.without_pidfd ERRNO ARGV``.

Older versions of gVisor have no such system call (ENOSYS). Older sandboxes refuse calls that they do not know (EPERM).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# <linux/prctl.h>, <linux/seccomp.h> and <linux/filter.h>; the number of pidfd_open is the same on all architectures.
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
FAIL_WITH, ALLOW = 0x00050000, 0x7FFF0000
PIDFD_OPEN = 434


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_pidfd_open(number: int) -> None:
    """Make ``pidfd_open`` fail with an error number in this process and its future children.

    Raises:
        OSError: The kernel permits no filter of system calls.
    """
    instructions = [
        (LOAD_WORD, 0, 0, 0),  # offset 0 of struct seccomp_data is the number of the system call
        (JUMP_IF_EQUAL, 0, 1, PIDFD_OPEN),
        (RETURN, 0, 0, FAIL_WITH | number),
        (RETURN, 0, 0, ALLOW),
    ]
    program = Program(len(instructions), b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    refuse_pidfd_open(getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # the arguments are those of the test
