"""Xen's C libraries, loaded when they are first needed, with every prototype declared.

Without a prototype ctypes passes a pointer as a C int and cuts it in half, so that a function without a
declared prototype is never called.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xenbusd.errors import UsageError


class Prototype(NamedTuple):
    """A function's result and arguments, as its header declares them."""

    result: Any
    arguments: Sequence[Any]


def load(soname: str, package: str, prototypes: Mapping[str, Prototype], *, keep_gil: bool = False) -> ctypes.CDLL:
    """Load a library and declare its functions. Their errno is `ctypes.get_errno()` afterwards.

    Args:
        soname: with its version: "libxengnttab.so.1".
        package: Debian's package that has it.
        keep_gil: for functions that never wait: giving up the GIL and taking it back would cost more than the call.

    Raises:
        UsageError: it is not installed, or lacks a function.
    """
    kind = ctypes.PyDLL if keep_gil else ctypes.CDLL
    try:
        library = kind(soname, use_errno=True)
    except OSError as error:
        raise UsageError(f"{soname} is missing: install it (Debian: apt install {package}); {error}") from error
    for name, prototype in prototypes.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise UsageError(f"{soname} has no {name}: a newer one is needed (Debian: {package})") from None
        function.argtypes = list(prototype.arguments)
        function.restype = prototype.result
    return library


def last_errno() -> int:
    """The errno of this thread's last call; EIO if the library set none."""
    return ctypes.get_errno() or errno.EIO
