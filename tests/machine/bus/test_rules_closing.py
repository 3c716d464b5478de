"""Rules T50 to T54: how a connection closes and begins again, on a machine with both ends."""

from __future__ import annotations

import pytest

from tests.doubles.echo import GUEST, Half, ask, held_by_backend, say
from xenbusd import toolstack
from xenbusd.bus import frontend_life
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING

# -- T50 ---------------------------------------------------------------------------------------------------------------


async def test_t50_each_step_of_a_close_is_visible(echo: Half) -> None:
    """T50: fe 5: be 5, and nothing more until fe 6: be 6. Both stay until the frontend moves, as kexec needs it, which
    waits for exactly 5, then exactly 6, then exactly 2."""
    with await echo.connect():
        for mine, theirs in (
            (State.CLOSING, State.CLOSING),
            (State.CLOSED, State.CLOSED),
            (State.INITIALISING, State.INIT_WAIT),
        ):
            await echo.peer.write(mine)
            await echo.backend(theirs)
            await echo.back.settle()
            assert await echo.peer.read("state") == b"%d" % theirs
    assert echo.backend_states() == ["Initialising", "InitWait", "Connected", "Closing", "Closed", "InitWait"]


async def test_t50_the_ring_is_served_while_both_are_closing(echo: Half) -> None:
    """T50: between fe 5 and fe 6 requests are still answered; by 6 nothing of the frontend's is mapped or bound."""
    with await echo.connect() as ring:
        await echo.peer.write(State.CLOSING)
        await echo.backend(State.CLOSING)
        assert await ask(ring, b"one more", b"and one") == [b"one more", b"and one"]
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
        holdings = echo.machine.holdings(GUEST)
        assert (holdings.grants_mapped, holdings.ports_bound) == (0, 0)


async def test_t50_closing_may_be_skipped(echo: Half) -> None:
    """T50: 4 to 6 is legal for a frontend, and common: the backend gives everything back and follows to 6."""
    with await echo.connect():
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
        assert await held_by_backend(echo) == 0


async def test_t50_a_frontend_that_is_gone_is_closed(echo: Half) -> None:
    """T50: if a frontend's directory has gone, its pages and ports are given back; the backend stays, at 6."""
    with await echo.connect():
        await echo.machine.store.rm(echo.peer.path)
        await echo.machine.until(echo.id, backend=State.CLOSED, frontend=State.UNKNOWN)
        assert await held_by_backend(echo) == 0


async def test_t50_online_keeps_the_device(echo: Half) -> None:
    """T50: after a close `online`=1 keeps the device; with `online`=0 nothing brings it back."""
    with await echo.connect():
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    await echo.peer.write(State.INITIALISING)
    await echo.backend(State.INIT_WAIT)
    await echo.peer.write(State.CLOSED)
    await echo.backend(State.CLOSED)
    await echo.machine.write(echo.id.backend_path, online="0")
    await echo.peer.write(State.INITIALISING)
    await echo.back.settle()
    assert await echo.peer.read("state") == b"6"


# -- T51 ---------------------------------------------------------------------------------------------------------------


async def test_t51_a_closed_device_begins_again(echo: Half) -> None:
    """T51: be 6, `online`=1 and fe back at 1: be writes fresh keys, then 2; the next kernel depends on it."""
    for round in range(3):
        with await echo.connect() as ring:
            text = b"round %d" % round
            assert await ask(ring, text) == [text]
            await echo.peer.write(State.CLOSING)
            await echo.backend(State.CLOSING)
            await echo.peer.write(State.CLOSED)
            await echo.backend(State.CLOSED)
        await echo.machine.store.rm(f"{echo.id.backend_path}/feature-upper")
        await echo.peer.write(State.INITIALISING)
        await echo.backend(State.INIT_WAIT)
        assert await echo.peer.read("feature-upper") == b"1"


async def test_t51_a_frontend_that_began_again_unannounced(echo: Half) -> None:
    """T51: fe falls back to 1 while be is at 4: its ring is dead, so the backend walks 5, 6 and 2 by itself."""
    with await echo.connect():
        await echo.peer.write(State.INITIALISING)
        await echo.backend(State.INIT_WAIT)
        assert await held_by_backend(echo) == 0
    assert echo.backend_states()[-4:] == ["Connected", "Closing", "Closed", "InitWait"]
    with await echo.connect() as ring:
        assert await ask(ring, b"the new kernel") == [b"the new kernel"]


@pytest.mark.parametrize("state", [State.INITIALISED, State.CONNECTED, State.CLOSING, State.CLOSED])
async def test_t51_a_frontend_process_that_died_is_replaced(machine: Machine, state: State) -> None:
    """T51: a frontend process that finds the directory where a dead one left it closes first, then begins again."""
    await machine.start(DOM0, EchoBackend)
    await machine.start(GUEST)  # the domain lives on
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id)
    if state is State.INITIALISED:
        await peer.until(State.INIT_WAIT)
        await peer.write(State.INITIALISED, ring_ref=4_000_000, event_channel=4_000_000)  # no ring to be had
        await machine.until(peer.id, backend=State.CLOSING)
    else:
        await peer.connect(RING)
        if state is not State.CONNECTED:
            await peer.write(state)
            await peer.until(state)
    await peer.process.kill()
    guest = await machine.start(GUEST, EchoFrontend)
    await guest.until(lambda: "Connected" in guest.states(peer.id, "frontend")[1:])
    assert await say(guest, peer.id, b"replaced") == [b"REPLACED"]
    assert guest.states(peer.id, "frontend")[-3:] == ["Initialising", "Initialised", "Connected"]


async def test_t51_our_frontend_comes_back_after_its_backend_closed(machine: Machine) -> None:
    """T51: while `online` is 1, our frontend follows a closing backend to 6, and then begins again."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    await machine.write(id.backend_path, state="5")
    await guest.until(lambda: guest.states(id, "frontend").count("Connected") == 2)
    assert await say(guest, id, b"again") == [b"AGAIN"]
    once = ["InitWait", "Connected", "Closing", "Closed"]
    assert back.states(id, "backend") == ["Initialising", *once, *once[:2]]


# -- T52 to T54 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fe", [State.INITIALISING, State.CLOSED, State.UNKNOWN])
async def test_t52_without_an_active_frontend_the_backend_closes_alone(echo: Half, fe: State) -> None:
    """T52: the toolstack writes `online` 0 and 5 into the backend's own directory; with the frontend at 0, 1 or 6 there
    is nobody to wait for, and the backend writes 6."""
    await echo.backend(State.INIT_WAIT)
    if fe is State.CLOSED:
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
        await echo.machine.write(echo.id.backend_path, online="0", state="5")
    elif fe is State.UNKNOWN:
        await echo.machine.store.rm(echo.peer.path)
        await echo.machine.write(echo.id.backend_path, online="0", state="5")
    else:
        await echo.machine.ask_to_close(echo.id)
    await echo.machine.until(echo.id, backend=State.CLOSED)
    await echo.back.settle()
    assert await echo.machine.read(f"{echo.id.backend_path}/state") == b"6"


async def test_t52_an_active_frontend_is_waited_for(echo: Half) -> None:
    """T52: with the frontend at work the backend waits, for ever if need be, at the toolstack's 5, serving; it finishes
    when the frontend closes at last."""
    with await echo.connect() as ring:
        await echo.machine.ask_to_close(echo.id)
        await echo.backend(State.CLOSING)
        with pytest.raises(OtherendTimeout, match="the frontend in domain 5 at Connected"):
            await toolstack.detach(echo.machine.store, echo.id, deadline_s=0.01)
        await echo.back.settle()
        assert await echo.peer.read("state") == b"5"
        assert await ask(ring, b"in use") == [b"in use"]
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
        assert await held_by_backend(echo) == 0
    await echo.machine.detach(echo.id)
    assert await echo.machine.nodes(echo.id.backend_path) == {}


async def test_t52_a_forced_detach_needs_no_frontend(echo: Half) -> None:
    """T52: forced, the frontend's directory goes first, in the same transaction: the backend drops all and writes 6."""
    before = (await echo.machine.snapshot()).nodes
    with await echo.connect():
        await echo.machine.detach(echo.id, force=True)
        assert await held_by_backend(echo) == 0
    assert echo.backend_states()[-2:] == ["Closing", "Closed"]
    after = (await echo.machine.snapshot()).nodes
    assert [path for path in after if path not in before or "echo" in path] == []


async def test_t52_a_6_of_somebody_else_s_is_a_close(echo: Half) -> None:
    """T52: libxl may write 6 itself, when it gives up; the backend gives everything back and leaves it there."""
    with await echo.connect():
        await echo.machine.write(echo.id.backend_path, online="0", state="6")
        await echo.back.settle()
        assert await held_by_backend(echo) == 0
        assert await echo.peer.read("state") == b"6"


async def test_t53_the_toolstack_deletes_the_directory(echo: Half) -> None:
    """T53: in domain 0 libxl deletes the backend's directory; the backend leaves it alone, whole, at 6."""
    with await echo.connect():
        await echo.machine.ask_to_close(echo.id)
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    await echo.back.settle()
    left = await echo.machine.nodes(echo.id.backend_path)
    assert {path.rpartition("/")[2] for path in left} >= {"frontend", "frontend-id", "online", "state"}


async def test_t53_in_a_driver_domain_the_backend_deletes_it(machine: Machine) -> None:
    """T53: in a driver domain without `xl devd` nobody else can: the backend deletes its directory once it is offline
    and at 6, and domain 0 waits for that."""
    await machine.start(Domid(7), EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo", backend=7))
    await machine.attach(peer.id)
    with await peer.connect(RING):
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    await peer.write(State.INITIALISING)
    await peer.until(State.INIT_WAIT)  # while `online` is 1, it stays
    await machine.ask_to_close(peer.id)
    await peer.until(State.UNKNOWN)
    assert await machine.nodes(peer.otherend_path) == {}
    await machine.detach(peer.id)
    assert await machine.nodes(peer.path) == {}


@pytest.mark.parametrize("online", [None, "0", "", "2", "yes"])
async def test_t54_absent_online_means_0(echo: Half, online: str | None) -> None:
    """T54: `online` says whether the toolstack wants the device there: only "1" means yes, and absent means no."""
    with await echo.connect():
        if online is None:
            await echo.machine.store.rm(f"{echo.id.backend_path}/online")
        else:
            await echo.machine.write(echo.id.backend_path, online=online)
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    await echo.peer.write(State.INITIALISING)
    await echo.back.settle()
    assert await echo.peer.read("state") == b"6"
    await echo.machine.write(echo.id.backend_path, online="1")
    await echo.backend(State.INIT_WAIT)


async def test_t54_online_is_no_link_state(echo: Half) -> None:
    """T54: that `online` changes under a connected pair closes nothing by itself."""
    with await echo.connect() as ring:
        for online in ("0", "1", "0"):
            await echo.machine.write(echo.id.backend_path, online=online)
            await echo.back.settle()
            assert await ask(ring, b"online %b" % online.encode()) == [b"online %b" % online.encode()]
            assert await echo.peer.read("state") == b"4"


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_t51_our_frontend_does_not_wait_for_ever(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T51: each step of a frontend's close has a deadline, as Linux' has: a backend that is stuck cannot hold it."""
    monkeypatch.setattr(frontend_life, "CLOSE_S", 0.01)
    id: DeviceId = machine.id("echo")
    back = Peer(await machine.start(DOM0), id, Side.BACKEND)
    await machine.start(GUEST)  # the domain lives on
    guest = await machine.start(GUEST, EchoFrontend)
    await machine.attach(id)
    await back.write(State.INIT_WAIT)
    await machine.until(id, frontend=State.INITIALISED)
    await guest.stop()
    assert await machine.read(f"{id.frontend_path}/state") == b"6"
    assert await machine.read(f"{id.backend_path}/state") == b"2"
