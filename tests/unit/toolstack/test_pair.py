"""xenbusd.toolstack: what a pair waits for, in words; and what attach, look, detach and devices do to a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.store.server import StoreServer
from xenbusd.toolstack import PairState

ID = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712))
ELSEWHERE = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712), Domid(7))
BACK, FRONT = ID.backend_path, ID.frontend_path

WELL = PairState(
    backend=State.CONNECTED,
    frontend=State.CONNECTED,
    online=True,
    hotplug_status="connected",
    hotplug_error=None,
    backend_error=None,
    frontend_error=None,
    script="/etc/xen/scripts/block",
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StoreServer]:
    """A store that knows domains 3 and 7."""
    store = StoreServer()
    for domid in (3, 7):
        store.introduce(domid)
        store.write(f"/local/domain/{domid}/name", f"guest{domid}")
    await store.listen(str(tmp_path / "store"))
    yield store
    await store.close()


@pytest.fixture
async def store(server: StoreServer, tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A session of dom0."""
    assert not server.exists(BACK)
    async with StoreClient(unix_endpoint(str(tmp_path / "store"))) as client:
        yield client


async def tree(store: StoreClient, path: str = "/local") -> dict[str, bytes]:
    """All nodes from `path` down, with their values."""
    nodes = {path: await store.read(path)}
    for name in await store.directory(path):
        nodes |= await tree(store, f"{path}/{name}")
    return nodes


async def set_states(store: StoreClient, backend: State, frontend: State) -> None:
    """Write both ends' states."""
    await asyncio.gather(
        store.write(BACK + "/state", str(int(backend))), store.write(FRONT + "/state", str(int(frontend)))
    )


# -- stuck ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (replace(WELL, backend=State.UNKNOWN), "its backend directory is gone"),
        (
            replace(WELL, backend=State.CLOSED, backend_error="2 cannot open /srv/a.img: No such file or directory"),
            "the backend in domain 0 reports: 2 cannot open /srv/a.img: No such file or directory",
        ),
        (
            replace(WELL, frontend=State.CLOSED, frontend_error="22 sectors is missing"),
            "the frontend in domain 3 reports: 22 sectors is missing",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, hotplug_status="error", hotplug_error="no loop device is free"),
            "the hotplug script reports: no loop device is free",
        ),
        (
            replace(WELL, backend=State.INITIALISING, frontend=State.INITIALISING),
            "the backend in domain 0 has not begun; is `xenbusd serve` running there, with a driver for vbd?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status=None),
            "the backend in domain 0 waits for its hotplug script (/etc/xen/scripts/block) to report",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status="busy"),
            "the backend in domain 0 waits for its hotplug script (/etc/xen/scripts/block) to report",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISING, script=None, hotplug_status=None),
            "the backend in domain 0 is at InitWait and waits for the frontend in domain 3, which has not begun; "
            "is its driver running?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.UNKNOWN),
            "the backend in domain 0 is at InitWait and waits for the frontend in domain 3, which has not begun; "
            "is its driver running?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT),
            "the frontend in domain 3 is Connected and waits for the backend in domain 0, which is at InitWait",
        ),
        (
            replace(WELL, frontend=State.INITIALISED),
            "the backend in domain 0 is at Connected, the frontend in domain 3 at Initialised",
        ),
        (
            replace(WELL, backend=State.CLOSING, frontend=State.CLOSING),
            "the backend in domain 0 is at Closing, the frontend in domain 3 at Closing",
        ),
    ],
)
def test_who_waits_for_what(seen: PairState, sentence: str) -> None:
    """One sentence: what is wrong if something is known to be, else who must move, and what to look at."""
    assert seen.stuck(ID) == sentence


def test_a_script_that_failed_is_told_before_what_came_of_it() -> None:
    """The first cause, not the backend's report of it."""
    seen = replace(WELL, backend_error="5 hotplug failed", hotplug_error="the reason")
    assert seen.stuck(ID) == "the hotplug script reports: the reason"


def test_a_driver_domain_is_named() -> None:
    """Both domains by their numbers."""
    seen = replace(WELL, backend=State.INITIALISING)
    assert seen.stuck(ELSEWHERE).startswith("the backend in domain 7 has not begun")


# -- attach --------------------------------------------------------------------------------------------------------


async def test_attach_makes_both_directories(store: StoreClient) -> None:
    """T15, T16: what libxl__device_generic_add writes, and the class's own keys."""
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
    """Or its directories would stay for whoever gets that number next."""
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


# -- look ----------------------------------------------------------------------------------------------------------


async def test_look_at_a_new_pair(store: StoreClient) -> None:
    """Both at Initialising; what nobody has written is None."""
    await toolstack.attach(store, ID, {}, {})
    assert await toolstack.observe(store, ID) == PairState(
        State.INITIALISING, State.INITIALISING, True, None, None, None, None, None
    )


async def test_look_at_nothing(store: StoreClient) -> None:
    """No directory: UNKNOWN, and not online (T54)."""
    assert await toolstack.observe(store, ID) == PairState(
        State.UNKNOWN, State.UNKNOWN, False, None, None, None, None, None
    )


async def test_look_at_everything_that_is_told(store: StoreClient) -> None:
    """Scripts' and both ends' reports, each from where it stands (T22, T58)."""
    await toolstack.attach(store, ID, {"script": "/etc/xen/scripts/block"}, {})
    await store.write(BACK + "/hotplug-status", "error")
    await store.write(BACK + "/hotplug-error", "kein Loop-Gerät")
    await store.write(ID.error_path(Side.BACKEND), "2 cannot open ä.img")
    await store.write(ID.error_path(Side.FRONTEND), "22 no")
    await store.write(BACK + "/online", "0")
    await set_states(store, State.CLOSED, State.CLOSING)
    assert await toolstack.observe(store, ID) == PairState(
        backend=State.CLOSED,
        frontend=State.CLOSING,
        online=False,
        hotplug_status="error",
        hotplug_error="kein Loop-Gerät",
        backend_error="2 cannot open ä.img",
        frontend_error="22 no",
        script="/etc/xen/scripts/block",
    )


async def test_what_a_guest_wrote_is_shown_escaped(store: StoreClient) -> None:
    """XSA-180: its error node cannot steer the administrator's terminal, nor fill it."""
    await toolstack.attach(store, ID, {}, {})
    await store.write(ID.error_path(Side.FRONTEND), b"1 \x1b[2J\n" + b"x" * 500)
    seen = await toolstack.observe(store, ID)
    assert seen.frontend_error is not None
    assert seen.frontend_error.isprintable()
    assert len(seen.frontend_error) < 200


# -- wait ----------------------------------------------------------------------------------------------------------


async def test_waiting_ends_when_both_are_connected(store: StoreClient) -> None:
    """Each change on the way is told."""
    await toolstack.attach(store, ID, {}, {})
    told: list[str] = []
    steps = iter([(State.INIT_WAIT, State.INITIALISED), (State.CONNECTED, State.CONNECTED)])
    moves: list[asyncio.Task[None]] = []

    def progress(sentence: str) -> None:
        told.append(sentence)
        if (states := next(steps, None)) is not None:
            moves.append(asyncio.create_task(set_states(store, *states)))

    await toolstack.wait_connected(store, ID, progress=progress)
    await asyncio.gather(*moves)
    assert "has not begun" in told[0]
    assert any("is at InitWait" in sentence for sentence in told[1:])


async def test_waiting_too_long_says_for_whom(store: StoreClient) -> None:
    """The deadline's message names the end that has to move."""
    await toolstack.attach(store, ID, {}, {})
    with pytest.raises(
        OtherendTimeout, match=r"vbd/3/51712 is not Connected after 0\.05 s: the backend in domain 0 has not begun"
    ):
        await toolstack.wait_connected(store, ID, deadline_s=0.05)


async def test_waiting_ends_early_when_an_end_gives_up(store: StoreClient) -> None:
    """An error node together with Closed will not become Connected by waiting."""
    await toolstack.attach(store, ID, {}, {})
    await store.write(ID.error_path(Side.BACKEND), "2 cannot open /srv/a.img")
    await set_states(store, State.CLOSED, State.INITIALISING)
    with pytest.raises(OtherendTimeout, match="does not connect: the backend in domain 0 reports: 2 cannot open"):
        await toolstack.wait_connected(store, ID)


# -- detach --------------------------------------------------------------------------------------------------------


async def test_detach_of_a_closed_pair_removes_all_of_it(store: StoreClient) -> None:
    """Both directories, both error nodes, and every parent that only they had made."""
    before = await tree(store)
    await toolstack.attach(store, ID, {}, {})
    await store.write(ID.error_path(Side.BACKEND), "2 no")
    await store.write(ID.error_path(Side.FRONTEND), "2 no")
    await set_states(store, State.CLOSED, State.CLOSED)
    await toolstack.detach(store, ID)
    after = await tree(store)
    kept = {"/local/domain/0", "/local/domain/0/backend", "/local/domain/3/device"}
    assert after.keys() - before.keys() <= kept | {f"/local/domain/{domid}/error" for domid in (0, 3)}


async def test_detach_leaves_the_neighbour(store: StoreClient) -> None:
    """A second disk of the same guest stays as it is."""
    other = replace(ID, devid=Devid(51728))
    await toolstack.attach(store, ID, {}, {})
    await toolstack.attach(store, other, {"params": "x"}, {})
    kept = {**await tree(store, other.backend_path), **await tree(store, other.frontend_path)}
    await set_states(store, State.CLOSED, State.CLOSED)
    await toolstack.detach(store, ID)
    assert {**await tree(store, other.backend_path), **await tree(store, other.frontend_path)} == kept
    assert await toolstack.devices(store) == [other]


async def test_detach_asks_first_and_waits(store: StoreClient) -> None:
    """T52: online 0 and state 5 in one transaction; the directories go after the backend's 6."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    detaching = asyncio.create_task(toolstack.detach(store, ID))
    async with toolstack.following(store, ID) as next_state:
        while (seen := await next_state()).backend is State.CONNECTED:
            assert seen.online
        assert (seen.backend, seen.online) == (State.CLOSING, False)
        await store.write(BACK + "/state", "6")
    await detaching
    with pytest.raises(NodeNotFound):
        await store.read(BACK)


async def test_detach_of_a_disk_in_use_tells_so_and_leaves_it(store: StoreClient) -> None:
    """T52: without force the pair stays, asked to close."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    with pytest.raises(
        OtherendTimeout, match=r"has not closed after 0\.05 s: the backend is at Closing, the frontend .* at Connected"
    ):
        await toolstack.detach(store, ID, deadline_s=0.05)
    assert await store.read(BACK + "/state") == b"5"
    assert await store.read(FRONT + "/state") == b"4"


async def test_detach_by_force_removes_in_any_case(store: StoreClient) -> None:
    """T52: the frontend's directory first; late or not, both are gone in the end."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    with pytest.raises(OtherendTimeout, match="its directories were removed all the same"):
        await toolstack.detach(store, ID, force=True, deadline_s=0.05)
    assert await toolstack.observe(store, ID) == PairState(
        State.UNKNOWN, State.UNKNOWN, False, None, None, None, None, None
    )


async def test_detach_of_nothing_says_so(store: StoreClient) -> None:
    """With what shows the devices there are."""
    with pytest.raises(UsageError, match="there is no device vbd/3/51712; `xenbusctl list` shows"):
        await toolstack.detach(store, ID)


# -- devices -------------------------------------------------------------------------------------------------------


async def test_devices_are_found_whoever_made_them(store: StoreClient) -> None:
    """Every class, domain and number below one backend domain; what is not a device is passed over."""
    await toolstack.attach(store, ID, {}, {})
    await toolstack.attach(store, DeviceId(DeviceClass("vif"), Domid(7), Devid(0)), {}, {})
    await store.write("/local/domain/0/backend/vbd/3/xvda/state", "1")
    await store.write("/local/domain/0/backend/vbd/x/1/state", "1")
    assert [str(id) for id in await toolstack.devices(store)] == ["vbd/3/51712", "vif/7/0"]
    assert await toolstack.devices(store, Domid(7)) == []
