"""The backend: returns each line, in upper case if the frontend asked for that."""

from dataclasses import replace

from xenbusd.api import Backend, BackendDevice, boolean
from xenbusd_echo.protocol import RING


class EchoBackend(Backend, device_class="echo"):
    """Return each line."""

    async def run(self, dev: BackendDevice) -> None:
        await dev.advertise(feature_upper=1)  # -> InitWait; returns once the frontend has offered its ring
        upper = await dev.otherend.read("request-upper", boolean, default=False)
        async with dev.connect(RING) as ring:  # map, bind -> Connected; leaving: unbind, unmap -> Closing -> Closed
            async for line in ring:  # ends when the frontend closes
                ring.reply(replace(line, text=line.text.upper()) if upper else line)
