"""The fence, and why there has to be one.

x86 may let a load overtake an older store to another address, and CPython's interpreter is no obstacle to that:
two processes, each of which stores an index and then reads the other's, were observed to both read the old value.
That is exactly how a ring goes to sleep: publish `rsp_prod`, then read `rsp_event`; set `req_event`, then read
`req_prod` again. Without a full fence between the two, both ends can sleep at once, and a guest hangs (T62).
`tests/machine/bus/test_fence.py` shows it.

On machines with a weaker order than x86 the producer's stores and the consumer's loads need a fence as well;
`ORDERED` says whether they come for free.

Source: xen/include/public/io/ring.h (xen_mb, xen_wmb, xen_rmb); GCC's libatomic (atomic_thread_fence).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import partial
from threading import Lock

from xenbusd.errors import XenbusdError

_SEQ_CST = 5
"""__ATOMIC_SEQ_CST."""

ORDERED = platform.machine() in ("x86_64", "i686", "i386", "AMD64")
"""Whether plain loads and plain stores each keep their own order (x86-TSO)."""


def _find_fence() -> Callable[[], object]:
    try:
        # PyDLL, not CDLL: giving up the GIL would cost more than the fence itself.
        call = ctypes.PyDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        if not ORDERED:
            raise XenbusdError(
                "a memory fence is needed on this machine: install libatomic (Debian: libatomic1)"
            ) from None
        lock = Lock()

        def locked() -> None:  # an uncontended lock is a locked instruction on x86, and that is a full fence
            lock.acquire()
            lock.release()

        return locked
    call.argtypes = [ctypes.c_int]
    call.restype = None
    return partial(call, _SEQ_CST)


fence: Callable[[], object] = _find_fence()
"""Make every store before it visible before any load after it is done. About 0.2 us."""
