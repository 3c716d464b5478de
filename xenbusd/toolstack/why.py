"""Why a pair is not Connected: which end waits for what, as far as both directories say. Pure."""

from __future__ import annotations

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.toolstack.pair import PairState


def stuck(pair: PairState, id: DeviceId) -> str:
    """Say which end is waiting for what."""
    front, back = f"the frontend in domain {id.frontend_domid}", f"the backend in domain {id.backend_domid}"
    if pair.backend is State.UNKNOWN:
        return "its backend directory is gone"
    if pair.hotplug_error:
        return f"the hotplug script reports: {pair.hotplug_error}"
    for who, error in ((back, pair.backend_error), (front, pair.frontend_error)):
        if error:
            return f"{who} reports: {error}"
    if pair.backend is State.INITIALISING:
        return f"{back} has not begun; is `xenbusd serve` running there, with a driver for {id.device_class}?"
    if pair.backend is State.INIT_WAIT and pair.script and pair.hotplug_status != "connected":
        return f"{back} waits for its hotplug script ({pair.script}) to report"
    if pair.frontend in (State.UNKNOWN, State.INITIALISING):
        return f"{back} is at {pair.backend.title} and waits for {front}, which has not begun; is its driver running?"
    if pair.frontend is State.CONNECTED:
        return f"{front} is Connected and waits for {back}, which is at {pair.backend.title}"
    return f"{back} is at {pair.backend.title}, {front} at {pair.frontend.title}"
