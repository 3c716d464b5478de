"""Loading C libraries."""

from __future__ import annotations

import ctypes
import errno

import pytest

from xenbusd.errors import UsageError
from xenbusd.host.library import Prototype, last_errno, load

OPEN = {"open": Prototype(ctypes.c_int, (ctypes.c_char_p, ctypes.c_int))}


def test_missing_library_names_debians_package() -> None:
    """What is to be installed is in the message."""
    with pytest.raises(UsageError, match=r"libxennothing\.so\.1 is missing.*apt install libxennothing1"):
        load("libxennothing.so.1", "libxennothing1", {})


def test_missing_function_is_named_at_once() -> None:
    """A library that is too old is refused when it is loaded, not when the function is needed."""
    with pytest.raises(UsageError, match=r"libc\.so\.6 has no xengnttab_dance"):
        load("libc.so.6", "libc6", {"xengnttab_dance": Prototype(None, ())})


@pytest.mark.parametrize("keep_gil", [False, True])
def test_prototypes_are_declared_and_errno_kept(keep_gil: bool) -> None:
    """Each function knows its types, and its errno can be asked for, with the GIL or without."""
    libc = load("libc.so.6", "libc6", OPEN, keep_gil=keep_gil)
    assert isinstance(libc, ctypes.PyDLL) == keep_gil
    assert libc.open.argtypes == [ctypes.c_char_p, ctypes.c_int]
    assert libc.open(b"/nowhere/at/all", 0) == -1
    assert last_errno() == errno.ENOENT


def test_library_that_sets_no_errno_has_an_io_error() -> None:
    """An error never reads "Success"."""
    ctypes.set_errno(0)
    assert last_errno() == errno.EIO
