"""What root alone may do, taken away for a while: tests often run as root, whom no mode of a file stops."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION_3 = 0x20080522
OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Half(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def modes_of_files_count() -> Iterator[None]:
    """This thread opens only what the modes of files allow; programs that it starts have root's power again."""
    if os.getuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("only Linux lets root give its power away")
    libc, header, halves = ctypes.CDLL(None, use_errno=True), _Header(VERSION_3, 0), (_Half * 2)()
    assert libc.capget(ctypes.byref(header), halves) == 0
    had = halves[0].effective
    halves[0].effective = had & ~OVERRIDES
    assert libc.capset(ctypes.byref(header), halves) == 0
    try:
        yield
    finally:
        halves[0].effective = had
        assert libc.capset(ctypes.byref(header), halves) == 0
