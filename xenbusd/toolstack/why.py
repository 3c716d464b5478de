"""Why a pair is not in use: which end has not done what, as far as the store shows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenbusd.bus.finding import Finding, Nodes, end, not_begun, not_hotplugged, not_offered
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.toolstack.pair import PairState

if TYPE_CHECKING:
    from xenbusd.bus.driver import Backend


def finding(pair: PairState, id: DeviceId) -> Finding:
    """Say what is wrong with a pair that is not Connected: what an end or a script has reported, or else which end has
    not done what comes next."""
    front, back = end(Side.FRONTEND, id.frontend_domid), end(Side.BACKEND, id.backend_domid)
    if pair.backend is State.UNKNOWN:
        return Finding("the backend's directory", "is gone")
    if pair.hotplug_error:
        return Finding("the hotplug script", f"reports: {pair.hotplug_error}")
    for who, error in ((back, pair.backend_error), (front, pair.frontend_error)):
        if error:
            return Finding(who, f"reports: {error}")
    if pair.backend is State.INITIALISING:
        return not_begun(id.backend_domid, id.device_class)
    if pair.backend is State.INIT_WAIT and pair.script and pair.hotplug_status != "connected":
        return not_hotplugged(pair.script, pair.hotplug_status)
    if pair.frontend in (State.UNKNOWN, State.INITIALISING):
        return not_offered(id.frontend_domid, pair.frontend)
    if pair.frontend is State.CONNECTED:
        return Finding(back, f"is at {pair.backend.title}, though {front} is Connected")
    return Finding(back, f"is at {pair.backend.title}, {front} at {pair.frontend.title}")


def stuck(pair: PairState, id: DeviceId) -> str:
    """`finding` as a sentence without its full stop."""
    return str(finding(pair, id))


def explain(pair: PairState, id: DeviceId, nodes: Nodes, driver: type[Backend] | None) -> list[Finding]:
    """Collect all that is known of a pair without asking a daemon.

    Args:
        nodes: both directories, read together with `pair`.
        driver: the class's backend driver; None: it is not installed here.

    Returns:
        `finding` first, unless both ends are Connected; then what the driver knows.
    """
    connected = pair.backend is State.CONNECTED and pair.frontend is State.CONNECTED
    known = [] if connected else [finding(pair, id)]
    return known + (list(driver.explain(nodes)) if driver is not None else [])
