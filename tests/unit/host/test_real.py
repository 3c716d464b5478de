"""The host interface of real Xen, tested without Xen: mapped ranges, the order of closing, the store's endpoint."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xenbusd.errors import GrantError, LocalProtocolError
from xenbusd.host import real
from xenbusd.host.address import address_of
from xenbusd.host.real import MappedRange, RealGrants, store_endpoint
from xenbusd.ids import PAGE_SIZE, Domid, Gref


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Two pages that stand for another domain's."""
    with mmap.mmap(-1, 2 * PAGE_SIZE) as pages:
        yield pages


class Devices:
    """Plays both grant devices: hands out one range, notes what is given back."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.given_back: list[tuple[int, int]] = []
        self.closed = 0
        self.refuses = False

    def map(self, *_: object) -> int:
        """As GrantMapper.map."""
        return address_of(self.memory)

    def share(self, _domid: Domid, pages: int, _writable: bool) -> tuple[int, list[int]]:
        """As GrantSharer.share."""
        return address_of(self.memory), list(range(8, 8 + pages))

    def unmap(self, address: int, pages: int) -> None:
        """As GrantMapper.unmap and GrantSharer.unshare."""
        if self.refuses:
            raise GrantError("xengnttab_unmap", 22, "")
        self.given_back.append((address, pages))

    unshare = unmap

    def close(self) -> None:
        """As both."""
        self.closed += 1


@pytest.fixture
def devices(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Devices that are not there."""
    played = Devices(memory)
    monkeypatch.setattr(real, "GrantMapper", lambda: played)
    monkeypatch.setattr(real, "GrantSharer", lambda: played)
    return played


def mapped(grants: RealGrants, kind: str) -> Any:
    """Two pages, by a map or by a share."""
    return grants.map(Domid(3), [Gref(8), Gref(9)]) if kind == "map" else grants.share(Domid(3), 2)


def give_back(pages: Any) -> None:
    """Unmap or unshare."""
    pages.unmap() if hasattr(pages, "unmap") else pages.unshare()


both = pytest.mark.parametrize("kind", ["map", "share"])


@both
def test_view_is_the_memory(devices: Devices, memory: mmap.mmap, kind: str) -> None:
    """A view is plain writable bytes over the very pages."""
    pages = mapped(RealGrants(), kind)
    assert (pages.view.format, pages.view.nbytes, pages.view.readonly) == ("B", 2 * PAGE_SIZE, False)
    pages.view[5] = 7
    assert memory[5] == 7
    memory[6] = 8
    assert pages.view[6] == 8
    give_back(pages)
    assert devices.given_back == [(address_of(memory), 2)]


@both
@pytest.mark.parametrize("kept", ["slice", "cast", "copy of the view"])
def test_no_page_goes_under_a_living_slice(devices: Devices, kind: str, kept: str) -> None:
    """With a slice, a cast or another view alive, unmapping is an error instead of a crash, and works afterwards."""
    pages = mapped(RealGrants(), kind)
    alive = memoryview(pages.view) if kept == "copy of the view" else pages.view[0:4]
    if kept == "cast":
        alive = alive.cast("I")
    with pytest.raises(LocalProtocolError, match="2 pages cannot be unmapped"):
        give_back(pages)
    assert not devices.given_back
    pages.view[0] = 1
    assert alive[0] == 1
    alive.release()
    give_back(pages)
    give_back(pages)
    assert len(devices.given_back) == 1
    with pytest.raises(ValueError, match="released"):
        pages.view[0]


@both
def test_ring_may_release_the_view_itself(devices: Devices, kind: str) -> None:
    """A view that its user has released is no obstacle."""
    pages = mapped(RealGrants(), kind)
    pages.view.release()
    give_back(pages)
    assert len(devices.given_back) == 1


def test_read_only_view_refuses_to_write(memory: mmap.mmap) -> None:
    """A write through a read-only mapping is a TypeError; without that it would be a SIGSEGV."""
    pages = MappedRange(address_of(memory), 2, writable=False)
    with pytest.raises(TypeError):
        pages.view[0] = 1
    kept = pages.view[0:1]
    with pytest.raises(LocalProtocolError):
        pages.release()
    kept.release()
    pages.release()


def test_references_of_a_share_are_in_order(devices: Devices) -> None:
    """One reference for each page, as the library returned them; the device is opened only now."""
    grants = RealGrants()
    grants.close()
    assert devices.closed == 1
    assert RealGrants().share(Domid(3), 2).grefs == (8, 9)


@both
def test_refused_unmap_can_be_tried_again(devices: Devices, kind: str) -> None:
    """When the kernel refuses, the pages are still ours to give back."""
    pages = mapped(RealGrants(), kind)
    devices.refuses = True
    with pytest.raises(GrantError):
        give_back(pages)
    devices.refuses = False
    give_back(pages)
    assert len(devices.given_back) == 1


@both
def test_close_gives_back_all_but_ranges_with_a_living_slice(devices: Devices, memory: mmap.mmap, kind: str) -> None:
    """Closing unmaps what is left; a range with a living slice stays mapped, so that the slice stays valid."""
    grants = RealGrants()
    left, looked_at = mapped(grants, kind), mapped(grants, kind)
    kept = looked_at.view[0:1]
    grants.close()
    assert devices.given_back == [(address_of(memory), 2)]
    memory[0] = 9
    assert kept[0] == 9
    with pytest.raises(ValueError, match="released"):
        left.view[0]


def test_store_is_a_socket_where_the_toolstack_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """control_d means dom0, where xenstored has a socket; any other domain has the kernel's device."""
    monkeypatch.setenv("XENSTORED_PATH", "/run/a/store/socket")
    capabilities = tmp_path / "capabilities"
    capabilities.write_text("control_d\n")
    assert store_endpoint(str(capabilities)).name == "/run/a/store/socket"
    capabilities.write_text("\n")
    assert "xenbus" in store_endpoint(str(capabilities)).name
    assert "xenbus" in store_endpoint(str(tmp_path / "missing")).name
