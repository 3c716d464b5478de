"""The binding of libxenevtchn."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from xenbusd.errors import EventChannelError
from xenbusd.host import evtchn
from xenbusd.host.evtchn import EVTCHN, PROTOTYPES, RealEventChannels
from xenbusd.ids import Domid, Port


@pytest.fixture
def installed() -> ctypes.CDLL:
    """Debian's libxenevtchn."""
    try:
        return evtchn.library()
    except Exception as error:
        pytest.skip(str(error))


def test_every_prototype_resolves_in_the_real_library(installed: ctypes.CDLL) -> None:
    """Each function is there, with declared types, and keeps the GIL."""
    assert isinstance(installed, ctypes.PyDLL)
    for name, prototype in PROTOTYPES.items():
        function = getattr(installed, name)
        assert function.argtypes == list(prototype.arguments)
        assert function.restype is prototype.result


@pytest.mark.usefixtures("installed")
@pytest.mark.skipif(os.path.exists(EVTCHN), reason="this is a Xen domain")
def test_missing_device_is_an_error_that_names_it() -> None:
    """Without Xen the real library's open fails with the device and the reason."""
    with pytest.raises(EventChannelError, match=rf"xenevtchn_open\({EVTCHN}\): No such file") as caught:
        RealEventChannels()
    assert caught.value.errno == errno.ENOENT


class Library:
    """Plays libxenevtchn on a pipe: what is written to it becomes pending."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.fails_with = 0
        self.fd, self.kernel = os.pipe()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> int:
            self.calls.append((name, arguments))
            if name == "xenevtchn_open":
                return 0x1000
            if name == "xenevtchn_fd":
                return self.fd
            ctypes.set_errno(self.fails_with)
            if self.fails_with:
                return -1
            return 5 if "bind_" in name else 0

        return call


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A library that is not there."""
    played = Library()
    monkeypatch.setattr(evtchn, "library", lambda: played)
    yield played
    os.close(played.fd)
    os.close(played.kernel)


def test_pending_takes_all_there_is_and_does_not_wait(library: Library) -> None:
    """One read takes a batch of ports; with none there is an answer all the same."""
    events = RealEventChannels()
    assert events.pending() == []
    os.write(library.kernel, struct.pack("=3I", 5, 7, 9))
    assert events.pending() == [5, 7, 9]
    assert events.pending() == []


def test_failed_read_is_an_error(library: Library) -> None:
    """A device that cannot be read any more is not an empty one."""
    events = RealEventChannels()
    events.close()
    with pytest.raises(EventChannelError, match=rf"read\({EVTCHN}\)"):
        events.pending()
    assert library.calls[-1][0] == "xenevtchn_close"


def test_ports_are_opened_used_and_closed(library: Library) -> None:
    """Each verb is one call with the handle and the port; closing twice is closing once."""
    events = RealEventChannels()
    assert events.alloc_unbound(Domid(3)) == 5
    events.notify(Port(5))
    events.unmask(Port(5))
    events.unbind(Port(5))
    events.unbind(Port(5))
    assert library.calls[2:] == [
        ("xenevtchn_bind_unbound_port", (0x1000, 3)),
        ("xenevtchn_notify", (0x1000, 5)),
        ("xenevtchn_unmask", (0x1000, 5)),
        ("xenevtchn_unbind", (0x1000, 5)),
    ]


def test_failures_name_call_domain_and_port(library: Library) -> None:
    """Every refusal of the kernel becomes an error that can be traced."""
    events = RealEventChannels()
    port = events.bind_interdomain(Domid(3), Port(17))
    library.fails_with = errno.EINVAL
    with pytest.raises(EventChannelError) as caught:
        events.bind_interdomain(Domid(3), Port(17))
    assert str(caught.value) == "xenevtchn_bind_interdomain(domain 3, port 17): Invalid argument"
    with pytest.raises(EventChannelError, match=r"xenevtchn_bind_unbound_port\(domain 3\)"):
        events.alloc_unbound(Domid(3))
    with pytest.raises(EventChannelError, match=r"xenevtchn_notify\(port 5\)"):
        events.notify(port)
    with pytest.raises(EventChannelError, match=r"xenevtchn_unmask\(port 5\)"):
        events.unmask(port)
    with pytest.raises(EventChannelError, match=r"xenevtchn_unbind\(port 5\)"):
        events.unbind(port)


@pytest.mark.parametrize(("domid", "port"), [(65539, 1), (-1, 1), (3, 1 << 32), (3, -1)])
def test_numbers_that_c_would_cut_never_reach_it(library: Library, domid: int, port: int) -> None:
    """A port that does not fit into u32 is not another port."""
    events = RealEventChannels()
    library.calls.clear()
    with pytest.raises(EventChannelError) as caught:
        events.bind_interdomain(Domid(domid), Port(port))
    assert caught.value.errno == errno.EINVAL
    assert not library.calls


def test_closed_device_is_an_error_and_no_crash(library: Library) -> None:
    """After close nothing reaches the library with a null handle."""
    events = RealEventChannels()
    port = events.alloc_unbound(Domid(3))
    events.close()
    events.close()
    library.calls.clear()
    with pytest.raises(EventChannelError, match="Bad file descriptor"):
        events.alloc_unbound(Domid(3))
    with pytest.raises(EventChannelError, match="xenevtchn_notify"):
        events.notify(port)
    events.unmask(port)
    events.unbind(port)
    assert not library.calls
