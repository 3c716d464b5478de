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
    assert await otherend.read_offer(4) == ([8], 15)


async def test_a_ring_of_one_page_in_the_new_spelling() -> None:
    """T28: ring-page-order present, even as 0, means ring-ref0; a ring-ref beside it is not looked at."""
    otherend, _ = directory(ring_page_order=b"0", ring_ref0=b"9", ring_ref=b"8", event_channel=b"15")
    assert await otherend.read_offer(4) == ([9], 15)


async def test_a_ring_of_several_pages() -> None:
    """T28: 2^order references, in their order."""
    refs = {f"ring_ref{page}": b"%d" % (100 - page) for page in range(4)}
    otherend, _ = directory(ring_page_order=b"2", event_channel=b"15", **refs)
    assert await otherend.read_offer(2) == ([100, 99, 98, 97], 15)


async def test_each_key_of_an_offer_is_read_once() -> None:
    """T11: its writer may change it at any time, so what was read first counts."""
    otherend, store = directory(ring_page_order=b"1", ring_ref0=b"1", ring_ref1=b"2", event_channel=b"3")
    await otherend.read_offer(4)
    assert len(store.reads) == len(set(store.reads))


async def test_one_queue_may_be_named() -> None:
    """T28: multi-queue-num-queues 1 is the same as none; its keys stand at the top."""
    otherend, _ = directory(multi_queue_num_queues=b"1", ring_ref=b"8", event_channel=b"15")
    assert await otherend.read_offer(0) == ([8], 15)


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
        ({"multi_queue_num_queues": b"2"}, "is 2, but one queue was offered"),
        ({"multi_queue_num_queues": b"0"}, "is 0, but one queue was offered"),
        ({"multi_queue_num_queues": b"many"}, "which is no number of queues"),
    ],
)
async def test_an_offer_that_is_not_sound_is_refused(keys: dict[str, bytes | None], message: str) -> None:
    """T28: each key named, with what is wrong with it."""
    good: dict[str, bytes | None] = {"ring_ref": b"8", "event_channel": b"15"}
    otherend, _ = directory(**{key: value for key, value in (good | keys).items() if value is not None})
    with pytest.raises(NodeValueError, match=message):
        await otherend.read_offer(2)
