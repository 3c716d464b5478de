"""The frontend: offers the echo to this domain's programs on a UNIX socket, line by line."""

from asyncio import StreamReader, StreamWriter, start_unix_server
from contextlib import closing, suppress

from xenbusd.api import ConnectionEnded, Frontend, FrontendDevice, boolean
from xenbusd_echo.protocol import RING, TEXT_MAX, Line


class EchoFrontend(Frontend, device_class="echo"):
    """Send each line that a program writes, and give it the answer."""

    async def run(self, dev: FrontendDevice) -> None:
        async def converse(reader: StreamReader, writer: StreamWriter) -> None:
            with closing(writer), suppress(ConnectionEnded, ConnectionError, ValueError):
                async for text in reader:
                    answer = await ring.call(Line(id=0, text=text.rstrip(b"\n")[:TEXT_MAX]))
                    writer.write(answer.text + b"\n")
                    await writer.drain()

        await dev.backend_ready()  # the backend is at InitWait
        upper = await dev.otherend.read("feature-upper", boolean, default=False)
        async with dev.offer(RING, request_upper=upper) as ring:  # -> Initialised; entered once the backend Connected
            server = await start_unix_server(converse, dev.run_path("sock"))
            try:
                await dev.connected()  # -> Connected
                await ring.closed()
            finally:
                server.close()
