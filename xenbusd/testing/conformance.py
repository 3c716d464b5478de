"""What every driver pair must do, as tests that a driver's package gets by naming its two classes:

    class TestConformance(PairConformance):
        backend, frontend, readme = MyBackend, MyFrontend, Path(__file__).parents[1] / "README.md"

pytest runs each `test_` method below on a simulated machine. Write `use`, too: without it they only see that the pair
connects, not that it works.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from xenbusd import registry
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import EventChannelError
from xenbusd.ids import DOM0
from xenbusd.testing.faults import CALLS, Faults
from xenbusd.testing.key_table import generic_key, read_keys
from xenbusd.testing.machine import Process
from xenbusd.testing.trial import (
    DRIVER_DOMAIN,
    GUEST,
    NOT_YET,
    PairUnderTest,
    Trial,
    each_step,
    neighbours,
    outlived,
    trial,
)

RUBBISH = (b"", b"0", b"-1", b"7", b"4294967295", b"18446744073709551616", b"9" * 1500, b"\xff\xfe", b"../../../etc")
"""What a hostile end writes where something else is meant."""

TOOLSTACK_KEYS = {
    Side.BACKEND: {"frontend", "frontend-id", "online", "state"},
    Side.FRONTEND: {"backend", "backend-id", "state"},
}
"""Keys that every device has, of which a README need not tell."""

LATE_S = 0.03
"""By how much watch events are late, where they are."""

SEEDS = range(12)
"""Runs of what is random."""

LIES_MAX = 40
"""Lies that are told, about; where there could be more, every second or third is."""

REFUSALS_MAX = 12
"""How often a call that is made again and again is refused; then the others' turn comes."""

both_sides = pytest.mark.parametrize("side", list(Side), ids=lambda side: side.value)


@pytest.mark.asyncio
class PairConformance(PairUnderTest):
    """Derive a class called `Test...` from this, and describe your pair in it, as `PairUnderTest` says."""

    readme: ClassVar[Path]
    """Where the table of keys stands."""
    sometimes: ClassVar[frozenset[str]] = frozenset()
    """Keys of the README that are not written in this configuration."""

    # -- the honest pair -------------------------------------------------------------------------------------------

    async def test_is_found_by_its_entry_points(self) -> None:
        """The daemon finds both drivers: the package is installed, and names them in the group `xenbusd.drivers`."""
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
        """The README's table names each key that is written, in its directory; and each that it names is written,
        or counted among `sometimes`."""
        async with trial(self) as it:
            await it.serve()
            id = await it.connect(await it.agent())
            for side, documented in read_keys(self.readme.read_text()).items():
                nodes = await it.machine.nodes(id.path(side))
                names = [path.removeprefix(id.path(side) + "/") for path, value in nodes.items() if value]
                written = {generic_key(name) for name in names if name not in TOOLSTACK_KEYS[side]} - {id.path(side)}
                where = f"{self.readme}, {side.value}'s directory"
                untold, unwritten = sorted(written - documented), sorted(documented - written - self.sometimes)
                assert not untold, f"{where}: written and not told of: {', '.join(untold)}"
                assert not unwritten, f"{where}: told of and not written: {', '.join(unwritten)}"

    async def test_closes_from_the_frontend_and_begins_again(self) -> None:
        """An agent that ends closes in order, and nothing of it stays mapped; the next one connects (6, 1, 2)."""
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
        """A backend that closes while `online` is 1 is followed to Closed by its frontend, and both come back."""
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
        """A device whose directories are torn away leaves nothing, and can be attached anew."""
        async with trial(self) as it:
            back, guest = await it.serve(), await it.agent()
            await it.machine.detach(await it.connect(guest))
            before = await it.remains()
            async with neighbours(it, back):
                for _ in range(3):
                    await it.machine.detach(await it.connect(guest), force=True)
            await it.nothing_left(before)

    async def test_backend_daemon_is_restarted(self) -> None:
        """The next daemon goes on with the pair, or closes it in order and both begin again: it works either way."""
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

    # -- misfortune ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("phase", ["handshake", "detach"])
    async def test_domain_dies_at_each_step(self, phase: str) -> None:
        """Whenever the guest is destroyed, the backend lets go of all that was its, and its neighbour never notices."""
        async with trial(self) as it:
            back = await it.serve()
            async with neighbours(it, back):
                await it.machine.detach(await it.connect(warm := await it.agent()))
                await warm.stop()
                before = await it.remains()

                async def dies(step: int) -> bool:
                    id, survived = await self._cut(it, phase, step, Side.FRONTEND)
                    if not survived:
                        await it.machine.until(id, backend=(State.CLOSED, State.UNKNOWN))
                        await it.remove(id, force=True)
                    await it.machine.kill(GUEST)
                    await it.nothing_left(before)
                    return survived

                await each_step(dies)

    @both_sides
    @pytest.mark.parametrize("phase", ["handshake", "detach"])
    async def test_process_dies_at_each_step(self, side: Side, phase: str) -> None:
        """Whenever the process of one end is killed, the next one takes its place: a pair that was connecting works,
        one that was closing closes."""
        async with trial(self) as it:
            await it.machine.start(GUEST)  # the domain lives on
            other = await (it.serve() if side is Side.FRONTEND else it.agent())
            before = await it.remains()

            async def dies(step: int) -> bool:
                id, survived = await self._cut(it, phase, step, side)
                if not survived:
                    next_one = await (it.agent() if side is Side.FRONTEND else it.serve())
                    if phase == "handshake":
                        await it.works(next_one if side is Side.FRONTEND else other, id)
                    await it.remove(id)
                for process in it.machine.processes[2:]:
                    if process is not other:
                        await process.stop()
                await it.nothing_left(before)
                return survived

            await each_step(dies)

    async def _cut(self, it: Trial, phase: str, step: int, side: Side) -> tuple[DeviceId, bool]:
        """Start one end, and cut it at a step of a phase. Return the device, and whether it outlived the phase, in
        which case it is detached."""
        faults = Faults()
        victim = await (it.agent(GUEST, faults) if side is Side.FRONTEND else it.serve(faults))
        guest = next(process for process in reversed(it.machine.processes) if process.domid == GUEST and process.alive)

        if phase == "handshake":
            faults.arm(cut_at=step)
            id = await it.attach()
            await outlived(it.reach_use(guest, id), faults.struck)
        else:
            id = await it.connect(guest)
            faults.arm(cut_at=step)
            await outlived(it.machine.detach(id), faults.struck)
        faults.arm()
        if faults.dead:
            await victim.kill()
        elif phase == "handshake":
            await it.machine.detach(id)
        return id, not faults.dead

    @both_sides
    async def test_store_is_lost_at_each_step(self, side: Side) -> None:
        """The connection to the store ends at any step of a handshake: the pair connects all the same, and works."""
        async with trial(self) as it:
            faults = Faults()
            _, guest = await it.pair_with(side, faults)
            await it.machine.detach(await it.connect(guest))
            before = await it.remains()

            async def lost(step: int) -> bool:
                faults.arm(lose_store_at=step)
                id = await it.connect(guest)
                last = not faults.struck.is_set()
                faults.arm()
                await it.machine.detach(id)
                return last

            await each_step(lost)
            await it.nothing_left(before)

    @both_sides
    async def test_calls_are_refused(self, side: Side) -> None:
        """Any call to the machine may fail: then there is an error node, the device closes, the neighbour goes on; and
        what failed once works when it is attached again."""
        async with trial(self) as it:
            faults = Faults()
            back, guest = await it.pair_with(side, faults)
            async with neighbours(it, back):
                await it.machine.detach(await it.connect(guest))
                before = await it.remains()
                faults.arm()
                await it.machine.detach(await it.connect(guest))
                made = {call: count for call, count in faults.calls.items() if call in CALLS}
                assert made, "it made no call at all"
                for call, count in made.items():
                    for refuse_at in range(1, min(count, REFUSALS_MAX) + 1):
                        faults.arm(refuse=call, refuse_at=refuse_at)
                        id = await it.attach()
                        with suppress(*NOT_YET):
                            await outlived(it.reach_use(guest, id), faults.struck)
                        faults.arm()
                        await self._recovers(it, guest, id, side)
                        await it.remove(id, force=True)
                        await it.nothing_left(before)

    @staticmethod
    async def _recovers(it: Trial, guest: Process, id: DeviceId, side: Side) -> None:
        """A frontend tries again by itself. A backend does, too, if that was in the middle of work; else it says why
        it closed, and stands still."""
        if side is Side.BACKEND:
            seen = await it.machine.until(id, backend=(State.CONNECTED, State.CLOSING, State.CLOSED))
            if seen.backend is not State.CONNECTED:
                assert await it.machine.read(id.error_path(Side.BACKEND)), "it closed, and left no error node"
                return
        await it.works(guest, id)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_watches_are_late(self, seed: int) -> None:
        """Events are hints: late, doubled and out of order they still bring a pair up, and down, again and again."""
        async with trial(self) as it:
            faults, more = Faults(seed), Faults(-seed)
            await it.serve(faults)
            guest = await it.agent(GUEST, more)
            await it.machine.detach(await it.connect(guest))
            before = await it.remains()
            faults.late_s = more.late_s = LATE_S
            for _ in range(4):
                await it.machine.detach(await it.connect(guest))
            faults.late_s = more.late_s = 0.0
            await it.nothing_left(before)

    # -- malice ----------------------------------------------------------------------------------------------------

    @both_sides
    async def test_hostile_pages_harm_nobody(self, side: Side) -> None:
        """Whatever one end finds in the pages that both share, it closes that device at the most; and when it is
        detached nothing of it is left."""
        async with trial(self) as it:
            faults = Faults()
            back, guest = await it.pair_with(side, faults)
            async with neighbours(it, back):
                await it.machine.detach(await it.connect(guest))
                before = await it.remains()
                hostile = guest if side is Side.FRONTEND else back
                for seed in SEEDS:
                    faults.random.seed(seed)
                    untouched = len(faults.mappings), len(faults.shares), len(faults.ports)
                    id = await it.connect(guest)
                    for _ in range(3):
                        faults.scribble(*untouched[:2])
                        for port in faults.ports[untouched[2] :]:
                            with suppress(EventChannelError):  # the real end has closed it by now
                                hostile.host.events.notify(port)
                        await guest.settle()
                        await back.settle()
                    await it.remove(id, force=True)
                    await it.nothing_left(before)

    @both_sides
    async def test_hostile_keys_harm_nobody(self, side: Side) -> None:
        """Rubbish in any key that one end writes is refused, or harmless: the other end lives, and says what it was."""
        async with trial(self) as it:
            faults = Faults()
            back, guest = await it.pair_with(side, faults)
            async with neighbours(it, back):
                id = await it.connect(guest)
                prefix = id.path(side) + "/"
                keys = [path.removeprefix(prefix) for path in faults.written if path.startswith(prefix)]
                await it.machine.detach(id)
                before = await it.remains()
                lies = [(key, rubbish) for key in keys if key != "state" for rubbish in RUBBISH]
                lies = lies[:: 1 + len(lies) // LIES_MAX]
                for number, (key, rubbish) in enumerate(lies):
                    faults.lies[f"{it.id(number).path(side)}/{key}"] = rubbish
                ids = [await it.attach(number) for number in range(len(lies))]
                judge = back if side is Side.FRONTEND else guest
                for id in ids:
                    await judge.until(lambda id=id: _has_judged(judge, id, side.opposite))  # type: ignore[misc]
                for some in (ids[start : start + 8] for start in range(0, len(ids), 8)):
                    await asyncio.gather(*(it.remove(id, force=True) for id in some))
                await it.nothing_left(before)

    @both_sides
    async def test_mad_states_harm_nobody(self, side: Side) -> None:
        """An end that hangs while its `state` takes two hundred values in no order, some of which are none: the other
        end lives through it, and lets go of everything when the device is taken away."""
        async with trial(self) as it:
            back = await it.serve()
            async with neighbours(it, back):
                await it.machine.detach(await it.connect(warm := await it.agent()))
                await warm.stop()
                before = await it.remains()
                for seed in (1, 2):
                    mad, id = await self._hang(it, side)
                    madness = random.Random(seed)
                    for _ in range(200):
                        await mad.store.write(f"{id.path(side)}/state", str(madness.randrange(11)))
                    if side is Side.BACKEND:
                        await it.machine.kill(DRIVER_DOMAIN)
                    await it.remove(id, force=True)
                    await it.machine.kill(GUEST)
                    await it.nothing_left(before)

    async def _hang(self, it: Trial, side: Side) -> tuple[Process, DeviceId]:
        """Connect a pair of which one end then hangs. Return a process beside that one, and the device."""
        faults = Faults()
        backend = DOM0 if side is Side.FRONTEND else DRIVER_DOMAIN
        if side is Side.BACKEND:
            await it.serve(faults, DRIVER_DOMAIN)
        guest = await it.agent(GUEST, faults if side is Side.FRONTEND else None)
        id = await it.attach(0, GUEST, backend)
        await it.reach_use(guest, id)
        faults.frozen = True
        return await it.machine.start(GUEST if side is Side.FRONTEND else backend), id


def _names(side: Side) -> set[str]:
    """The classes that have a driver of this side."""
    return {str(name) for name in registry.find(side)}


def _has_judged(process: Process, id: DeviceId, side: Side) -> bool:
    """Whether an end has taken what the other offered, or closed."""
    return bool({"Connected", "Closing", "Closed"} & set(process.states(id, side.value)))
