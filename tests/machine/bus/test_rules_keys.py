"""Rules T26 to T28: the keys of a disk and of a ring, on a machine with both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, ask
from tests.doubles.nodes import error_node
from xenbusd.api import Backend, BackendDevice, RingFormat
from xenbusd.bus.state import State
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd_echo.protocol import Line
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.protocol import X86_64

# -- T26 to T28 --------------------------------------------------------------------------------------------------------


async def test_t26_a_disk_s_ring_parameters_stand_at_init_wait(machine: Machine, tmp_path: Path) -> None:
    """T26: blkfront reads the ring's parameters at 2: the order, the number of queues and the segments of an indirect
    request are there by then."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": "w"})
    await peer.until(State.INIT_WAIT)
    assert await peer.read("max-ring-page-order") == b"4"
    assert int(await peer.read("multi-queue-max-queues") or 0) > 1
    assert await peer.read("feature-max-indirect-segments") == b"256"


@pytest.mark.parametrize("mode", ["w", "r"])
async def test_t27_a_disk_s_properties_stand_at_connected(machine: Machine, tmp_path: Path, mode: str) -> None:
    """T27: `sectors`, `info`, `sector-size` and the features are there when the backend is at 4, not before 3."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": mode})
    await peer.until(State.INIT_WAIT)
    assert await peer.read("sectors") is None
    with await peer.offer(X86_64.ring, protocol=X86_64.name):
        await peer.until(State.CONNECTED)
        found = {key.rpartition("/")[2]: value for key, value in (await machine.nodes(peer.otherend_path)).items()}
    writable = b"1" if mode == "w" else b"0"
    wanted = {
        "sectors": b"2048",
        "info": b"0" if mode == "w" else b"4",
        "sector-size": b"512",
        "feature-persistent": b"1",
        "feature-flush-cache": writable,
        "feature-barrier": writable,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["physical-sector-size"] in (b"512", b"4096")  # depends on the file system
    assert ("feature-discard" in found) == ("discard-granularity" in found) == ("discard-alignment" in found)


class Wide(Backend, device_class="wide"):
    """A backend that takes rings of up to four pages."""

    FORMAT = RingFormat(64, Line, Line, max_order=2)

    async def run(self, dev: BackendDevice) -> None:
        """Echo."""
        await dev.advertise(max_ring_page_order=2)
        async with dev.connect(self.FORMAT) as ring:
            async for line in ring:
                ring.reply(line)


@pytest.mark.parametrize(("order", "slots"), [(None, 32), (0, 32), (1, 64), (2, 128)])
async def test_t28_both_spellings_of_a_ring(machine: Machine, order: int | None, slots: int) -> None:
    """T28: without `ring-page-order` one page in `ring-ref`; with it, even as 0, `ring-ref0` and so on."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    with await peer.connect(Wide.FORMAT, order=order) as ring:
        assert ring.end.size == slots
        assert await ask(ring, *(b"%d" % n for n in range(slots))) == [b"%d" % n for n in range(slots)]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"ring-page-order": 3}, b"ring-page-order holds '3', which is no ring page order up to 2"),
        ({"ring-page-order": 1}, b"ring-ref0 is missing"),
        ({"ring-ref": b"0x8"}, b"ring-ref holds '0x8', which is no grant reference"),
        ({"ring-ref": 1 << 32}, b"ring-ref holds '4294967296', which is no grant reference"),
        ({"ring-ref": b""}, b"ring-ref holds '', which is no grant reference"),
        ({"ring-ref": b"\xb2"}, b"ring-ref holds '"),
        ({"event-channel": b"-1"}, b"event-channel holds '-1', which is no event channel port"),
        ({"multi-queue-num-queues": 2}, b"multi-queue-num-queues is 2; it must be 1 to 1"),
        ({"multi-queue-num-queues": 0}, b"multi-queue-num-queues is 0; it must be 1 to 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_t28_an_offer_that_is_not_sound_is_fatal(
    machine: Machine, keys: dict[str, Any], complaint: bytes
) -> None:
    """T28: an order or a number of queues above the offer, and keys that are missing or no numbers, end the connection
    with an error that names the key; the next one may succeed."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    await peer.until(State.INIT_WAIT)
    with await peer.offer(Wide.FORMAT, **keys):
        await peer.until(State.CLOSING)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    error = await error_node(machine, peer.id)
    assert error.startswith(b"22 /local/domain/5/device/wide/0/" + complaint)
    for key in keys:
        await peer.store.rm(f"{peer.path}/{key}")
    await peer.write(State.INITIALISING)
    with await peer.connect(Wide.FORMAT) as ring:
        assert await ask(ring, b"sound") == [b"sound"]
    assert machine.holdings(Domid(5)).grants_mapped in (0, 1)


async def test_t28_one_queue_may_be_said_aloud(machine: Machine) -> None:
    """T28: `multi-queue-num-queues` of 1 means the same as none: keys at the top."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    with await peer.connect(Wide.FORMAT, multi_queue_num_queues=1) as ring:
        assert await ask(ring, b"one queue") == [b"one queue"]
