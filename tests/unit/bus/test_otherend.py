"""xenbusd.bus.otherend: reading another domain's directory, and believing nothing of it unchecked."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from xenbusd.bus.nodes import boolean, text, unsigned
from xenbusd.bus.otherend import Directory, Otherend
from xenbusd.errors import AccessDenied, NodeNotFound, NodeValueError, StoreError, StoreLost
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

HOME = "/local/domain/3/device/vbd/51712"


class DictStore:
    """A store that is a dictionary; a value that is an exception is raised. It counts the reads."""

    def __init__(self, nodes: dict[str, bytes | Exception]) -> None:
        self.nodes = nodes
        self.reads: list[str] = []

    async def read(self, path: str) -> bytes:
        """As StoreClient.read."""
        self.reads.append(path)
        value = self.nodes.get(path, NodeNotFound("READ", path, errno.ENOENT))
        if isinstance(value, Exception):
            raise value
        return value


def directory(**keys: bytes | Exception) -> tuple[Otherend, DictStore]:
    """A frontend's directory that holds these keys."""
    store = DictStore({f"{HOME}/{key.replace('_', '-')}": value for key, value in keys.items()})
    return Otherend(cast("StoreClient", store), Domid(3), HOME), store


def test_the_other_end_knows_where_it_is() -> None:
    """Domain, directory, and the node that is watched."""
    otherend, _ = directory()
    assert (otherend.domid, otherend.path, otherend.state_path) == (3, HOME, HOME + "/state")


async def test_a_key_is_read_as_its_type() -> None:
    """`read` parses, and reads the node once (T11)."""
    otherend, store = directory(feature_persistent=b"1")
    assert await otherend.read("feature-persistent", boolean) is True
    assert store.reads == [HOME + "/feature-persistent"]


async def test_an_absent_key_has_its_default() -> None:
    """Also a default that is None, 0 or False."""
    otherend, _ = directory()
    assert await otherend.read("feature-persistent", boolean, default=False) is False
    assert await otherend.read("protocol", text, default="x86_32-abi") == "x86_32-abi"


async def test_a_key_that_may_not_be_read_counts_as_absent() -> None:
    """T9: an end that takes our permission away has, for us, removed the key."""
    otherend, _ = directory(protocol=AccessDenied("READ", HOME + "/protocol", errno.EACCES))
    assert await otherend.read("protocol", text, default="none") == "none"


async def test_a_required_key_that_is_absent_is_the_other_ends_fault() -> None:
    """The message says what it should hold."""
    otherend, _ = directory()
    with pytest.raises(NodeValueError, match=f"{HOME}/sectors is missing; it should hold a number up to 9"):
        await otherend.read("sectors", unsigned(9))


async def test_a_bad_key_is_not_replaced_by_its_default() -> None:
    """Garbage is garbage, not absence."""
    otherend, _ = directory(feature_persistent=b"maybe")
    with pytest.raises(NodeValueError, match="holds 'maybe', which is no boolean"):
        await otherend.read("feature-persistent", boolean, default=False)


@pytest.mark.parametrize("error", [StoreLost("gone"), StoreError("READ", "/a", errno.EIO)])
async def test_the_stores_own_trouble_is_not_the_other_ends(error: Exception) -> None:
    """A default does not hide that the store does not answer."""
    otherend, _ = directory(mode=error)
    with pytest.raises(type(error)):
        await Directory(otherend.store, HOME).read("mode", text, default="r")


# -- offers --------------------------------------------------------------------------------------------------------


async def test_a_ring_of_one_page_in_the_old_spelling() -> None:
    """T28: no ring-page-order means one page, in ring-ref."""
    otherend, _ = directory(ring_ref=b"8", event_channel=b"15")
    assert await otherend.read_offers(4, 1) == [([8], 15)]


async def test_a_ring_of_one_page_in_the_new_spelling() -> None:
    """T28: ring-page-order present, even as 0, means ring-ref0; a ring-ref beside it is not looked at."""
    otherend, _ = directory(ring_page_order=b"0", ring_ref0=b"9", ring_ref=b"8", event_channel=b"15")
    assert await otherend.read_offers(4, 1) == [([9], 15)]


async def test_a_ring_of_several_pages() -> None:
    """T28: 2^order references, in their order."""
    refs = {f"ring_ref{page}": b"%d" % (100 - page) for page in range(4)}
    otherend, _ = directory(ring_page_order=b"2", event_channel=b"15", **refs)
    assert await otherend.read_offers(2, 1) == [([100, 99, 98, 97], 15)]


async def test_each_key_of_an_offer_is_read_once() -> None:
    """T11: its writer may change it at any time, so what was read first counts."""
    otherend, store = directory(ring_page_order=b"1", ring_ref0=b"1", ring_ref1=b"2", event_channel=b"3")
    await otherend.read_offers(4, 1)
    assert len(store.reads) == len(set(store.reads))


async def test_one_queue_may_be_named() -> None:
    """T28: multi-queue-num-queues 1 is the same as none; its keys stand at the top."""
    otherend, _ = directory(multi_queue_num_queues=b"1", ring_ref=b"8", event_channel=b"15")
    assert await otherend.read_offers(0, 1) == [([8], 15)]


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
        ({"multi_queue_num_queues": b"2"}, "is 2; 1 to 1 can be had"),
        ({"multi_queue_num_queues": b"0"}, "is 0; 1 to 1 can be had"),
        ({"multi_queue_num_queues": b"many"}, "which is no number of queues"),
    ],
)
async def test_an_offer_that_is_not_sound_is_refused(keys: dict[str, bytes | None], message: str) -> None:
    """T28: each key named, with what is wrong with it."""
    good: dict[str, bytes | None] = {"ring_ref": b"8", "event_channel": b"15"}
    otherend, _ = directory(**{key: value for key, value in (good | keys).items() if value is not None})
    with pytest.raises(NodeValueError, match=message):
        await otherend.read_offers(2, 1)


def queue_keys(number: int, pages: int | None = None) -> dict[str, bytes]:
    """What stands in one queue's directory: references from 10 * `number` on, port 70 + `number`."""
    names = ["ring_ref"] if pages is None else [f"ring_ref{page}" for page in range(pages)]
    keys = {f"queue_{number}/{name}": b"%d" % (10 * number + page) for page, name in enumerate(names)}
    return {**keys, f"queue_{number}/event_channel": b"%d" % (70 + number)}


@pytest.mark.parametrize("pages", [None, 1, 2])
async def test_several_queues(pages: int | None) -> None:
    """T28: each queue's keys are in its own directory, the order of all is at the top, and the top's ring-ref counts
    for nothing; each key is read once."""
    orders = {} if pages is None else {"ring_page_order": b"%d" % (pages - 1)}
    queues = queue_keys(0, pages) | queue_keys(1, pages) | queue_keys(2, pages)
    otherend, store = directory(
        multi_queue_num_queues=b"3", ring_ref=b"8", ring_ref0=b"8", event_channel=b"15", **orders, **queues
    )
    expected = [([10 * number + page for page in range(pages or 1)], 70 + number) for number in range(3)]
    assert await otherend.read_offers(4, 3) == expected
    assert len(store.reads) == len(set(store.reads))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"multi_queue_num_queues": b"5"}, "multi-queue-num-queues is 5; 1 to 4 can be had"),
        ({"multi_queue_num_queues": b"0"}, "multi-queue-num-queues is 0; 1 to 4 can be had"),
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
        await otherend.read_offers(4, 4)
