"""The attacks by one end that the other must survive: hostile pages, hostile keys, and states in no order."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.errors import EventChannelError
from xenbusd.ids import DOM0
from xenbusd.testing.checks.cases import both_sides
from xenbusd.testing.faults import Faults
from xenbusd.testing.process import Process
from xenbusd.testing.trial import DRIVER_DOMAIN, GUEST, PairUnderTest, Trial, neighbours, trial

RUBBISH = (b"", b"0", b"-1", b"7", b"4294967295", b"18446744073709551616", b"9" * 1500, b"\xff\xfe", b"../../../etc")
"""The values that a hostile end writes in place of one."""

SEEDS = range(12)
"""Seeds of hostile pages; each is a round."""

LIES_MAX = 40
"""The approximate number of lies in one check; if more are possible, only every second or third is tried."""


class MaliceChecks(PairUnderTest):
    """Checks in which one end is hostile; `side` says which."""

    @both_sides
    async def test_hostile_pages_harm_nobody(self, side: Side) -> None:
        """Whatever an end finds in the shared pages, it closes that device at most; once the device is detached,
        nothing of it is left."""
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
        """Rubbish in any key that one end writes is refused or harmless: the other end survives, and reports it."""
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
        """One end hangs while its `state` takes two hundred values in no order, not all of them states: the other end
        survives, and releases everything when the device is removed."""
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
        """Connect a pair of which one end then hangs. Return another process of that end's domain, and the device."""
        faults = Faults()
        backend = DOM0 if side is Side.FRONTEND else DRIVER_DOMAIN
        if side is Side.BACKEND:
            await it.serve(faults, DRIVER_DOMAIN)
        guest = await it.agent(GUEST, faults if side is Side.FRONTEND else None)
        id = await it.attach(0, GUEST, backend)
        await it.reach_use(guest, id)
        faults.frozen = True
        return await it.machine.start(GUEST if side is Side.FRONTEND else backend), id


def _has_judged(process: Process, id: DeviceId, side: Side) -> bool:
    """Whether an end has accepted the offer of the other, or closed."""
    return bool({"Connected", "Closing", "Closed"} & set(process.states(id, side.value)))
