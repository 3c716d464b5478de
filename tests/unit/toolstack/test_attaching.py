"""xenbusd.toolstack.attaching: the nodes that attach writes, and its refusals."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.doubles.pairs import BACK, ELSEWHERE, FRONT, ID, tree
from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, Domid
from xenbusd.store.client import StoreClient


async def test_attach_makes_both_directories(store: StoreClient) -> None:
    """T15, T16, T68: what libxl__device_generic_add writes, and the class's own keys."""
    await toolstack.attach(store, ID, {"params": "raw:/srv/a.img", "mode": "w"}, {"virtual-device": "51712"})
    nodes = await tree(store)
    assert {path.removeprefix(BACK): value for path, value in nodes.items() if path.startswith(BACK)} == {
        "": b"",
        "/frontend": FRONT.encode(),
        "/frontend-id": b"3",
        "/online": b"1",
        "/state": b"1",
        "/params": b"raw:/srv/a.img",
        "/mode": b"w",
    }
    assert {path.removeprefix(FRONT): value for path, value in nodes.items() if path.startswith(FRONT)} == {
        "": b"",
        "/backend": BACK.encode(),
        "/backend-id": b"0",
        "/state": b"1",
        "/virtual-device": b"51712",
    }


@pytest.mark.parametrize("id", [ID, ELSEWHERE], ids=["dom0", "driver domain"])
async def test_each_end_owns_its_directory_and_may_read_the_other(store: StoreClient, id: DeviceId) -> None:
    """T10, XSA-57: the directory and every key in it; nobody else may read, and neither end may write the other's."""
    await toolstack.attach(store, id, {"params": "x"}, {"virtual-device": "1"})
    for path, owner, reader in (
        (id.backend_path, id.backend_domid, id.frontend_domid),
        (id.frontend_path, id.frontend_domid, id.backend_domid),
    ):
        for node in await tree(store, path):
            assert await store.get_perms(node) == [f"n{owner}", f"r{reader}"]


async def test_the_directories_above_stay_dom0s(store: StoreClient) -> None:
    """A guest cannot make devices of its own, nor rename one."""
    await toolstack.attach(store, ID, {}, {})
    for path in (FRONT, BACK):
        for parent in (path.rpartition("/")[0], path.rpartition("/")[0].rpartition("/")[0]):
            assert (await store.get_perms(parent))[0] == "n0"


@pytest.mark.parametrize("taken", [BACK, FRONT])
async def test_attach_refuses_what_is_there_already(store: StoreClient, taken: str) -> None:
    """Either directory; the message names it, and nothing is half made."""
    await store.mkdir(taken)
    before = await tree(store)
    with pytest.raises(UsageError, match=f"there is a device vbd/3/51712 already .{taken}.; detach it first"):
        await toolstack.attach(store, ID, {"params": "x"}, {})
    assert await tree(store) == before


async def test_attach_refuses_a_domain_that_is_not_there(store: StoreClient) -> None:
    """Otherwise its directories would stay for the next domain of that number."""
    id = replace(ID, frontend_domid=Domid(4))
    before = await tree(store)
    with pytest.raises(UsageError, match="there is no domain 4: start it first"):
        await toolstack.attach(store, id, {}, {})
    assert await tree(store) == before


async def test_dom0_may_be_a_frontend(store: StoreClient) -> None:
    """T71: a boot loader in dom0 reads a guest's disk."""
    id = replace(ID, frontend_domid=DOM0)
    await toolstack.attach(store, id, {}, {})
    assert await store.read("/local/domain/0/device/vbd/51712/backend-id") == b"0"


async def test_two_attachments_at_once_make_one_device(store: StoreClient) -> None:
    """One transaction each: the second sees the first, whichever that is."""
    results = await asyncio.gather(
        *(toolstack.attach(store, ID, {"params": name}, {}) for name in "ab"), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "UsageError"]
    winner = "ab"[results.index(None)]
    assert await store.read(BACK + "/params") == winner.encode()
