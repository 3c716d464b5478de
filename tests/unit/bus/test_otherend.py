"""xenbusd.bus.otherend: reading another domain's directory, and believing nothing of it unchecked."""

from __future__ import annotations

import errno

import pytest

from tests.doubles.dict_store import HOME, directory
from xenbusd.bus.nodes import boolean, text, unsigned
from xenbusd.bus.otherend import Directory
from xenbusd.errors import AccessDenied, NodeValueError, StoreError, StoreLost


def test_the_other_end_knows_where_it_is() -> None:
    """Domain, directory, and the node that is watched."""
    otherend, _ = directory()
    assert (otherend.domid, otherend.path) == (3, HOME)


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
        await Directory(otherend._store, HOME).read("mode", text, default="r")
