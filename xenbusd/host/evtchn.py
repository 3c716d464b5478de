"""libxenevtchn: event channel ports.

PyDLL, and so with the GIL: each call is one short ioctl or write that never waits for another domain, and `notify` and
`unmask` are on the data path.

The pending ports are read from the descriptor directly, many at a time: the library's own xenevtchn_pending reads one,
and waits for it if there is none.

Source: tools/include/xenevtchn.h; linux/include/uapi/xen/evtchn.h; linux/drivers/xen/evtchn.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache

from xenbusd.errors import EventChannelError
from xenbusd.host.grefs import DOMID_MAX
from xenbusd.host.interface import EventChannels
from xenbusd.host.library import Prototype, last_errno, load
from xenbusd.ids import Domid, Port

EVTCHN = "/dev/xen/evtchn"
"""The device that libxenevtchn opens."""

PORT_MAX = 0xFFFFFFFF
"""evtchn_port_t is a u32 (xen/include/public/event_channel.h)."""

_PORTS_AT_ONCE = 1024
"""Bytes of one read; the kernel returns at most a page."""

_handle = ctypes.c_void_p
_port = ctypes.c_uint32
_port_or_error = ctypes.c_int

PROTOTYPES = {
    "xenevtchn_open": Prototype(_handle, (ctypes.c_void_p, ctypes.c_uint)),
    "xenevtchn_close": Prototype(ctypes.c_int, (_handle,)),
    "xenevtchn_fd": Prototype(ctypes.c_int, (_handle,)),
    "xenevtchn_notify": Prototype(ctypes.c_int, (_handle, _port)),
    "xenevtchn_bind_unbound_port": Prototype(_port_or_error, (_handle, ctypes.c_uint32)),
    "xenevtchn_bind_interdomain": Prototype(_port_or_error, (_handle, ctypes.c_uint32, _port)),
    "xenevtchn_unbind": Prototype(ctypes.c_int, (_handle, _port)),
    "xenevtchn_unmask": Prototype(ctypes.c_int, (_handle, _port)),
}


@cache
def library() -> ctypes.CDLL:
    """libxenevtchn.

    Raises:
        UsageError: it is not installed.
    """
    return load("libxenevtchn.so.1", "libxenevtchn1", PROTOTYPES, keep_gil=True)


class RealEventChannels(EventChannels):
    """/dev/xen/evtchn: the ports of this process.

    Raises:
        UsageError: the library is missing.
        EventChannelError: the device is, or may not be opened.
    """

    def __init__(self) -> None:
        self._lib = library()
        self._handle: int | None = self._lib.xenevtchn_open(None, 0)
        if self._handle is None:
            raise EventChannelError("xenevtchn_open", last_errno(), EVTCHN)
        self.fd = self._lib.xenevtchn_fd(self._handle)
        os.set_blocking(self.fd, False)
        self._ports: set[Port] = set()
        self._notify = self._lib.xenevtchn_notify
        self._unmask = self._lib.xenevtchn_unmask

    def alloc_unbound(self, domid: Domid) -> Port:
        """See `EventChannels.alloc_unbound`."""
        call, about = "xenevtchn_bind_unbound_port", f"domain {domid}"
        self._check(call, about, domid)
        return self._opened(self._lib.xenevtchn_bind_unbound_port(self._handle, domid), call, about)

    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        """See `EventChannels.bind_interdomain`."""
        call, about = "xenevtchn_bind_interdomain", f"domain {domid}, port {otherend_port}"
        self._check(call, about, domid, otherend_port)
        return self._opened(self._lib.xenevtchn_bind_interdomain(self._handle, domid, otherend_port), call, about)

    def notify(self, port: Port) -> None:
        """See `EventChannels.notify`."""
        if port not in self._ports:  # also when closed: the library would follow its null handle
            raise EventChannelError("xenevtchn_notify", errno.ENOTCONN, f"port {port}")
        if self._notify(self._handle, port):
            raise EventChannelError("xenevtchn_notify", last_errno(), f"port {port}")

    def pending(self) -> list[Port]:
        """See `EventChannels.pending`."""
        try:
            data = os.read(self.fd, 4 * _PORTS_AT_ONCE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EventChannelError("read", error.errno or errno.EIO, EVTCHN) from error
        if len(data) == 4:  # one, nearly always
            return [Port(int.from_bytes(data, "little"))]
        return list(struct.unpack(f"={len(data) // 4}I", data))

    def unmask(self, port: Port) -> None:
        """See `EventChannels.unmask`."""
        if port in self._ports and self._unmask(self._handle, port):
            raise EventChannelError("xenevtchn_unmask", last_errno(), f"port {port}")

    def unbind(self, port: Port) -> None:
        """See `EventChannels.unbind`."""
        if port not in self._ports:
            return
        self._ports.remove(port)
        if self._lib.xenevtchn_unbind(self._handle, port):
            raise EventChannelError("xenevtchn_unbind", last_errno(), f"port {port}")

    def close(self) -> None:
        """Close the device, and with it all ports. Idempotent."""
        if self._handle is not None:
            self._lib.xenevtchn_close(self._handle)
            self._handle = None
            self.fd = -1
            self._ports.clear()

    def _check(self, call: str, about: str, domid: int, otherend_port: int = 0) -> None:
        """Refuse a number that C would truncate, and any call once the device is closed."""
        if self._handle is None:
            raise EventChannelError(call, errno.EBADF, about)
        if not 0 <= domid <= DOMID_MAX or not 0 <= otherend_port <= PORT_MAX:
            raise EventChannelError(call, errno.EINVAL, about)

    def _opened(self, port: int, call: str, about: str) -> Port:
        if port < 0:
            raise EventChannelError(call, last_errno(), about)
        opened = Port(port)
        self._ports.add(opened)
        return opened
