"""A backend that lies to the disk: no request is lost, and none ends twice."""

from __future__ import annotations

import pytest

from tests.doubles.backend_rings import Caller, Ring, sent
from xenbusd.errors import OtherendError, RingError
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.protocol import (
    DISCARD,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    WRITE,
)


@pytest.mark.parametrize("op", [WRITE, FLUSH_DISKCACHE, DISCARD, 255])
async def test_an_answer_with_another_op(ring: Ring, disk: RingDisk, caller: Caller, op: int) -> None:
    """It ends the connection, and its request is done by the next ring: nobody is left waiting."""
    disk.read(512, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, op, OKAY))
    with pytest.raises(OtherendError, match=f"operation {op} to request {request.id} with operation 0"):
        ring.drain()
    assert caller.ends == []
    disk.detach()
    next_ring = Ring()
    next_ring.attach(disk)
    next_ring.succeed(*await sent(next_ring))
    next_ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize("offset", [1, -1, 1 << 32, -(1 << 40)])
async def test_an_answer_to_nothing(ring: Ring, disk: RingDisk, caller: Caller, offset: int) -> None:
    """An id that is not in the ring ends the connection, and finishes no request."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    wrong = (request.id + offset) % (1 << 64)
    ring.answer((wrong, READ, OKAY))
    with pytest.raises(OtherendError, match=f"a response to request {wrong}, which is not in the ring"):
        ring.drain()
    assert caller.ends == []


async def test_a_second_answer(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A request ends once, even if the backend answers it again."""
    disk.read(0, 512, caller.read_done("first"))
    disk.read(0, 512, caller.read_done("second"))
    first, _ = await sent(ring)
    ring.succeed(first, first)
    with pytest.raises(OtherendError, match="not in the ring"):
        ring.drain()
    assert caller.ends == [("first", 0)]


async def test_more_answers_than_requests(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A producer index that cannot be ends the connection before anything is believed."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, OKAY), (request.id, READ, OKAY))
    with pytest.raises(RingError, match="requests that were never made"):
        ring.drain()
    assert caller.ends == []
