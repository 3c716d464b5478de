"""The duties of an honest pair: connect, work, close from either end, begin again, and leave nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from xenbusd import registry
from xenbusd.bus.state import Side, State
from xenbusd.testing.key_table import generic_key, read_keys
from xenbusd.testing.process import Process
from xenbusd.testing.trial import GUEST, PairUnderTest, neighbours, trial

TOOLSTACK_KEYS = {
    Side.BACKEND: {"frontend", "frontend-id", "online", "state"},
    Side.FRONTEND: {"backend", "backend-id", "state"},
}
"""Keys that every device has; a README need not name them."""


class HonestChecks(PairUnderTest):
    """Nothing goes wrong."""

    readme: ClassVar[Path]
    """The file with the table of keys."""
    sometimes: ClassVar[frozenset[str]] = frozenset()
    """Keys in the README that are not written in this configuration."""

    async def test_is_found_by_its_entry_points(self) -> None:
        """The daemon finds both drivers: their package is installed, and names them in the group `xenbusd.drivers`."""
        name = self.backend.device_class
        hint = f"install the package (pip install --editable .); its entry points name {name}.backend, {name}.frontend"
        for side, driver in ((Side.BACKEND, self.backend), (Side.FRONTEND, self.frontend)):
            found = registry.find(side, [name]) if name in _names(side) else {}
            assert found.get(name) is driver, hint

    async def test_connects_works_and_leaves_nothing(self) -> None:
        """Both ends go through the states of the 2006 paper, in order; after a detach nothing is left of either."""
        async with trial(self) as it:
            back, guest = await it.serve(), await it.agent()
            await it.machine.detach(await it.connect(guest))
            before = await it.remains()
            id = await it.connect(guest)
            assert back.states(id, "backend") == ["Initialising", "InitWait", "Connected"]
            assert guest.states(id, "frontend") in (
                ["Initialising", "Initialised", "Connected"],
                ["Initialising", "Connected"],
            )
            await it.machine.detach(id)
            assert back.states(id, "backend")[3:] == ["Closing", "Closed"]
            assert guest.states(id, "frontend")[-2:] == ["Closing", "Closed"]
            await it.nothing_left(before)

    async def test_several_devices_are_told_apart(self) -> None:
        """Four devices of one guest connect, work and go together."""
        async with trial(self) as it:
            await it.serve()
            guest = await it.agent()
            ids = [await it.attach(number) for number in range(4)]
            await asyncio.gather(*map(it.machine.connected, ids))
            await asyncio.gather(*(self.use(guest, id) for id in ids))
            await asyncio.gather(*map(it.machine.detach, ids))

    async def test_keys_are_those_of_the_readme(self) -> None:
        """The README's table names each key that is written, for the right directory; and each key that it names is
        written, or is one of `sometimes`."""
        async with trial(self) as it:
            await it.serve()
            id = await it.connect(await it.agent())
            for side, documented in read_keys(self.readme.read_text()).items():
                nodes = await it.machine.nodes(id.path(side))
                names = [path.removeprefix(id.path(side) + "/") for path, value in nodes.items() if value]
                written = {generic_key(name) for name in names if name not in TOOLSTACK_KEYS[side]} - {id.path(side)}
                where = f"{self.readme}, {side.value}'s directory"
                undocumented, unwritten = sorted(written - documented), sorted(documented - written - self.sometimes)
                assert not undocumented, f"{where}: written, but not documented: {', '.join(undocumented)}"
                assert not unwritten, f"{where}: documented, but not written: {', '.join(unwritten)}"

    async def test_closes_from_the_frontend_and_begins_again(self) -> None:
        """An agent that ends closes its device in order and leaves nothing mapped; the next one connects (6, 1, 2)."""
        async with trial(self) as it:
            back = await it.serve()
            await it.machine.start(GUEST)  # the domain lives on
            guest = await it.agent()
            before = await it.remains()
            id = await it.connect(guest)
            await guest.stop()
            await it.machine.until(id, backend=State.CLOSED, frontend=State.CLOSED)
            held = it.machine.holdings(GUEST)
            assert (held.grants_shared, held.grants_mapped, held.ports) == (0, 0, 0)
            second = await it.agent()
            await it.works(second, id)
            once = ["InitWait", "Connected", "Closing", "Closed"]
            assert back.states(id, "backend") == ["Initialising", *once, *once[:2]]
            await it.machine.detach(id)
            await it.nothing_left(before)

    async def test_closes_from_the_backend_and_begins_again(self) -> None:
        """When a backend closes while `online` is 1, its frontend follows it to Closed, and both reconnect."""
        async with trial(self) as it:
            await it.serve()
            guest = await it.agent()
            id = await it.connect(guest)
            await it.machine.write(id.backend_path, state="5")
            await guest.until(lambda: guest.states(id, "frontend").count("Connected") == 2)
            await it.works(guest, id)
            await it.machine.detach(id)
            assert await it.machine.nodes(id.backend_path) == {}

    async def test_detach_by_force(self) -> None:
        """A device whose directories are removed by force leaves nothing, and can be attached again."""
        async with trial(self) as it:
            back, guest = await it.serve(), await it.agent()
            await it.machine.detach(await it.connect(guest))
            before = await it.remains()
            async with neighbours(it, back):
                for _ in range(3):
                    await it.machine.detach(await it.connect(guest), force=True)
            await it.nothing_left(before)

    async def test_backend_daemon_is_restarted(self) -> None:
        """The next daemon adopts the pair, or closes it in order and both ends reconnect: it works either way."""
        async with trial(self) as it:
            back, guest = await it.serve(), await it.agent()
            before = await it.remains()
            id = await it.connect(guest)
            for end in (Process.stop, Process.kill, Process.stop):
                await end(back)
                back = await it.serve()
                await it.works(guest, id)
            await it.machine.detach(id)
            await it.nothing_left(before)


def _names(side: Side) -> set[str]:
    """The names of the classes that have a driver of this side."""
    return {str(name) for name in registry.find(side)}
