"""The address of a buffer's first byte, which a C library needs and Python does not show."""

from __future__ import annotations

import ctypes


class _Buffer(ctypes.Structure):
    """Py_buffer. Source: CPython's Include/pybuffer.h; part of the stable ABI since 3.11."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_SIMPLE = 0
"""PyBUF_SIMPLE: contiguous bytes, read-only will do."""

_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None


def address_of(buffer: object) -> int:
    """Return where `buffer` lies in memory. `ctypes.addressof` works for writable buffers only.

    The address is good for as long as the caller keeps the buffer, and does not resize it.

    Raises:
        BufferError, TypeError: it has no contiguous bytes.
    """
    exported = _Buffer()
    _get_buffer(buffer, ctypes.byref(exported), _SIMPLE)
    address = exported.buf
    _release_buffer(ctypes.byref(exported))
    return address or 0
