"""The keys of a frontend's directory that offer rings: written by the frontend, read by the backend."""

from __future__ import annotations

import pytest

from tests.doubles.dict_store import HOME, directory
from xenbusd.bus.nodes import encode
from xenbusd.bus.offers import PAGE, Offer, QueueOffer, RingOffer, keys_to_remove, offer_keys, one_ring, read_offer
from xenbusd.bus.otherend import Otherend
from xenbusd.errors import NodeValueError
from xenbusd.ids import Gref, Port
from xenbusd.ring.layout import Raw, RingFormat

TX = RingFormat(12, Raw, Raw, ref="tx-ring-ref", port="event-channel-tx")
RX = RingFormat(8, Raw, Raw, ref="rx-ring-ref", port="event-channel-rx")
CTRL = RingFormat(16, Raw, Raw, ref="ctrl-ring-ref", port="event-channel-ctrl")


async def read_plain(otherend: Otherend, max_order: int, max_queues: int) -> list[tuple[list[int], int]]:
    """Queues of one ring each, with the keys that most classes have."""
    offer = await read_offer(otherend, (RingFormat(64, Raw, Raw, max_order),), max_queues)
    return [(list(queue.rings[0].grefs), queue.rings[0].port) for queue in offer.queues]


async def test_a_ring_of_one_page_in_the_old_spelling() -> None:
    """T28: no ring-page-order means one page, in ring-ref."""
    otherend, _ = directory(ring_ref=b"8", event_channel=b"15")
    assert await read_plain(otherend, 4, 1) == [([8], 15)]


async def test_a_ring_of_one_page_in_the_new_spelling() -> None:
    """T28: ring-page-order present, even as 0, means ring-ref0; a ring-ref beside it is ignored."""
    otherend, _ = directory(ring_page_order=b"0", ring_ref0=b"9", ring_ref=b"8", event_channel=b"15")
    assert await read_plain(otherend, 4, 1) == [([9], 15)]


async def test_a_ring_of_several_pages() -> None:
    """T28: 2^order references, in their order."""
    refs = {f"ring_ref{page}": b"%d" % (100 - page) for page in range(4)}
    otherend, _ = directory(ring_page_order=b"2", event_channel=b"15", **refs)
    assert await read_plain(otherend, 2, 1) == [([100, 99, 98, 97], 15)]


async def test_each_key_of_an_offer_is_read_once() -> None:
    """T11: its writer may change it at any time, so what was read first counts."""
    otherend, store = directory(ring_page_order=b"1", ring_ref0=b"1", ring_ref1=b"2", event_channel=b"3")
    await read_plain(otherend, 4, 1)
    assert len(store.reads) == len(set(store.reads))


async def test_one_queue_may_be_named() -> None:
    """T28: multi-queue-num-queues 1 is the same as none; its keys stand at the top."""
    otherend, _ = directory(multi_queue_num_queues=b"1", ring_ref=b"8", event_channel=b"15")
    assert await read_plain(otherend, 0, 1) == [([8], 15)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ring_ref": None}, "ring-ref is missing"),
        ({"event_channel": None}, "event-channel is missing"),
        ({"ring_ref": b"-1"}, "ring-ref holds '-1', which is no grant reference"),
        ({"ring_ref": b"4294967296"}, "which is no grant reference"),
        ({"event_channel": b"x"}, "event-channel holds 'x', which is no event channel port"),
        ({"ring_page_order": b"3"}, "which is no ring page order up to 2"),
        ({"ring_page_order": b"-1"}, "which is no ring page order up to 2"),
        ({"ring_page_order": b"1"}, "ring-ref0 is missing"),
        ({"ring_page_order": b"1", "ring_ref0": b"1"}, "ring-ref1 is missing"),
        ({"multi_queue_num_queues": b"2"}, "is 2; it must be 1 to 1"),
        ({"multi_queue_num_queues": b"0"}, "is 0; it must be 1 to 1"),
        ({"multi_queue_num_queues": b"many"}, "which is no number of queues"),
    ],
)
async def test_an_offer_that_is_not_sound_is_refused(keys: dict[str, bytes | None], message: str) -> None:
    """T28: each key named, with what is wrong with it."""
    good: dict[str, bytes | None] = {"ring_ref": b"8", "event_channel": b"15"}
    otherend, _ = directory(**{key: value for key, value in (good | keys).items() if value is not None})
    with pytest.raises(NodeValueError, match=message):
        await read_plain(otherend, 2, 1)


def queue_keys(number: int, pages: int | None = None) -> dict[str, bytes]:
    """What stands in one queue's directory: references from 10 * `number` on, port 70 + `number`."""
    names = ["ring_ref"] if pages is None else [f"ring_ref{page}" for page in range(pages)]
    keys = {f"queue_{number}/{name}": b"%d" % (10 * number + page) for page, name in enumerate(names)}
    return {**keys, f"queue_{number}/event_channel": b"%d" % (70 + number)}


@pytest.mark.parametrize("pages", [None, 1, 2])
async def test_several_queues(pages: int | None) -> None:
    """T28: each queue's keys are in its own directory, the order of all is at the top, and the top's ring-ref is
    ignored; each key is read once."""
    orders = {} if pages is None else {"ring_page_order": b"%d" % (pages - 1)}
    queues = queue_keys(0, pages) | queue_keys(1, pages) | queue_keys(2, pages)
    otherend, store = directory(
        multi_queue_num_queues=b"3", ring_ref=b"8", ring_ref0=b"8", event_channel=b"15", **orders, **queues
    )
    expected = [([10 * number + page for page in range(pages or 1)], 70 + number) for number in range(3)]
    assert await read_plain(otherend, 4, 3) == expected
    assert len(store.reads) == len(set(store.reads))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"multi_queue_num_queues": b"5"}, "multi-queue-num-queues is 5; it must be 1 to 4"),
        ({"multi_queue_num_queues": b"0"}, "multi-queue-num-queues is 0; it must be 1 to 4"),
        ({"multi_queue_num_queues": b"65536"}, "which is no number of queues"),
        ({"multi_queue_num_queues": b"3"}, "queue-2/ring-ref is missing"),
        ({"queue_1/ring_ref": b"x"}, "queue-1/ring-ref holds 'x', which is no grant reference"),
        ({"queue_1/event_channel": b""}, "queue-1/event-channel holds '', which is no event channel port"),
        ({"queue_0/ring_page_order": b"1", "ring_page_order": b"0"}, "queue-0/ring-ref0 is missing"),
    ],
)
async def test_an_offer_of_several_queues_that_is_not_sound_is_refused(keys: dict[str, bytes], message: str) -> None:
    """T28: none, more than there are, and any one of them that is not complete."""
    good = {"multi_queue_num_queues": b"2", **queue_keys(0), **queue_keys(1)}
    otherend, _ = directory(**(good | keys))
    with pytest.raises(NodeValueError, match=message):
        await read_plain(otherend, 4, 4)


# -- several rings for a queue, and rings beside the queues --------------------------------------------------------


def net(number: int | None = None, **ports: int) -> dict[str, bytes]:
    """The keys of a queue of two rings; its ports as given."""
    prefix = "" if number is None else f"queue_{number}/"
    base = 10 * (number or 0)
    refs = {f"{prefix}tx_ring_ref": base + 1, f"{prefix}rx_ring_ref": base + 2}
    return {
        key: b"%d" % value for key, value in {**refs, **{prefix + key: port for key, port in ports.items()}}.items()
    }


SPLIT = {"event_channel_tx": 71, "event_channel_rx": 72}


async def test_rings_that_share_a_port() -> None:
    """No split event channels: both rings of the queue sit on event-channel."""
    otherend, _ = directory(**net(event_channel=70))
    offer = await read_offer(otherend, (TX, RX), 1)
    assert offer == Offer([QueueOffer([RingOffer([Gref(1)], Port(70)), RingOffer([Gref(2)], Port(70))], True)], [])


async def test_rings_with_ports_of_their_own() -> None:
    """Split event channels; an event-channel beside them, left from another time, is ignored."""
    otherend, store = directory(**net(event_channel=70, **SPLIT))
    offer = await read_offer(otherend, (TX, RX), 1)
    assert offer == Offer([QueueOffer([RingOffer([Gref(1)], Port(71)), RingOffer([Gref(2)], Port(72))], False)], [])
    assert len(store.reads) == len(set(store.reads))


async def test_one_split_port_is_none() -> None:
    """As in Linux's netback: both or event-channel."""
    otherend, _ = directory(**net(event_channel=70, event_channel_tx=71))
    assert (await read_offer(otherend, (TX, RX), 1)).queues[0].is_shared
    otherend, _ = directory(**net(event_channel_tx=71))
    with pytest.raises(NodeValueError, match="event-channel is missing"):
        await read_offer(otherend, (TX, RX), 1)


async def test_each_queue_has_its_own_rings() -> None:
    """One may be split, and the other not; the control ring stays at the top."""
    otherend, _ = directory(
        multi_queue_num_queues=b"2",
        **net(0, event_channel=70),
        **net(1, **SPLIT),
        ctrl_ring_ref=b"9",
        event_channel_ctrl=b"90",
    )
    offer = await read_offer(otherend, (TX, RX), 2, (CTRL,))
    assert [queue.is_shared for queue in offer.queues] == [True, False]
    assert [[ring.grefs[0] for ring in queue.rings] for queue in offer.queues] == [[1, 2], [11, 12]]
    assert offer.beside == [RingOffer([Gref(9)], Port(90))]


async def test_a_ring_beside_the_queues_is_optional() -> None:
    """But not by half."""
    otherend, _ = directory(**net(event_channel=70))
    assert (await read_offer(otherend, (TX, RX), 1, (CTRL,))).beside == [None]
    otherend, _ = directory(**net(event_channel=70), ctrl_ring_ref=b"9")
    with pytest.raises(NodeValueError, match="event-channel-ctrl is missing"):
        await read_offer(otherend, (TX, RX), 1, (CTRL,))


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("order", [None, 0, 2])
async def test_what_is_written_is_read(queues: int, order: int | None, is_shared: bool) -> None:
    """The frontend's keys, read by the backend, are the frontend's offer."""
    pages = 1 << (order or 0)
    formats = [RingFormat(64, Raw, Raw, 4, format.ref, format.port) for format in (TX, RX)]

    def ring(number: int, port: int) -> RingOffer:
        return RingOffer([Gref(100 * number + page) for page in range(pages)], Port(port))

    offered = Offer(
        [
            QueueOffer([ring(2 * n, 50 + n), ring(2 * n + 1, 50 + n if is_shared else 60 + n)], is_shared)
            for n in range(queues)
        ],
        [RingOffer([Gref(7)], Port(8))],
    )
    keys = offer_keys(formats, order, (CTRL,), offered)
    otherend, store = directory()
    store.nodes.update({f"{HOME}/{key}": encode(value) for key, value in keys.items()})
    assert await read_offer(otherend, formats, 4, (CTRL,)) == offered


def test_the_keys_of_one_plain_ring() -> None:
    """To the letter what blkfront writes; the keys whose absence means something are removed."""
    offer = Offer([QueueOffer([RingOffer([Gref(8)], Port(15))])])
    plain = (RingFormat(64, Raw, Raw),)
    keys = offer_keys(plain, None, (), offer)
    assert keys == {"ring-ref": 8, "event-channel": 15}
    assert keys_to_remove(plain, (), offer, keys) == ["multi-queue-num-queues", "ring-page-order"]


def test_split_ports_of_another_time_are_removed() -> None:
    """A frontend that comes back without them must not be believed to have them; nor its control ring."""
    offer = Offer([QueueOffer([RingOffer([Gref(1)], Port(70)), RingOffer([Gref(2)], Port(70))], True)], [None])
    keys = offer_keys((TX, RX), None, (CTRL,), offer)
    assert keys == {"event-channel": 70, "tx-ring-ref": 1, "rx-ring-ref": 2}
    assert keys_to_remove((TX, RX), (CTRL,), offer, keys) == [
        "multi-queue-num-queues",
        "ring-page-order",
        "event-channel-tx",
        "event-channel-rx",
        "ctrl-ring-ref",
        "event-channel-ctrl",
    ]


def test_the_keys_of_a_page_that_is_no_ring() -> None:
    """Those of a ring of one page."""
    assert offer_keys((PAGE,), None, (), one_ring([Gref(8)], Port(15))) == {"ring-ref": 8, "event-channel": 15}
