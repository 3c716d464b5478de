"""xenbusd.toolstack.pair: observes a pair, and lists all pairs."""

from __future__ import annotations

from tests.doubles.pairs import BACK, ID, set_states
from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.ids import DeviceClass, Devid, Domid
from xenbusd.store.client import StoreClient
from xenbusd.toolstack.pair import PairState


async def test_a_new_pair(store: StoreClient) -> None:
    """Both at Initialising; what nobody has written is None."""
    await toolstack.attach(store, ID, {}, {})
    assert await toolstack.observe(store, ID) == PairState(
        State.INITIALISING, State.INITIALISING, True, None, None, None, None, None
    )


async def test_no_pair(store: StoreClient) -> None:
    """No directory: UNKNOWN, and not online (T54)."""
    assert await toolstack.observe(store, ID) == PairState(
        State.UNKNOWN, State.UNKNOWN, False, None, None, None, None, None
    )


async def test_every_report_is_read(store: StoreClient) -> None:
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


async def test_devices_are_found_whoever_made_them(store: StoreClient) -> None:
    """Every class, domain and number below one backend domain; what is not a device is passed over."""
    await toolstack.attach(store, ID, {}, {})
    await toolstack.attach(store, DeviceId(DeviceClass("vif"), Domid(7), Devid(0)), {}, {})
    await store.write("/local/domain/0/backend/vbd/3/xvda/state", "1")
    await store.write("/local/domain/0/backend/vbd/x/1/state", "1")
    assert [str(id) for id in await toolstack.devices(store)] == ["vbd/3/51712", "vif/7/0"]
    assert await toolstack.devices(store, Domid(7)) == []


async def test_devices_of_driver_domains_are_found_too(store: StoreClient) -> None:
    """After those of dom0; their names say which domain's they are. Of one domain only its own are found."""
    served_by_7 = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51728), Domid(7))
    await toolstack.attach(store, served_by_7, {}, {})
    await toolstack.attach(store, ID, {}, {})
    assert [str(id) for id in await toolstack.devices(store)] == ["vbd/3/51712", "vbd/3/51728@7"]
    assert await toolstack.devices(store, Domid(0)) == [ID]
    assert await toolstack.devices(store, Domid(7)) == [served_by_7]
