"""The failures that a pair must survive: a process or a domain dies at any step, the store is lost, calls are refused,
watches are late."""

from __future__ import annotations

from contextlib import suppress

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.testing.checks.cases import both_sides, each
from xenbusd.testing.faults import CALLS, Faults
from xenbusd.testing.process import Process
from xenbusd.testing.trial import GUEST, NOT_YET, PairUnderTest, Trial, each_step, neighbours, outlived, trial

LATE_S = 0.03
"""Delay of watch events, at most."""

REFUSALS_MAX = 12
"""How many occurrences of one call are refused, one in each attempt; later ones are not tried."""


class MisfortuneChecks(PairUnderTest):
    """Both ends are honest; processes, domains, the store or calls to the machine fail."""

    @each("phase", ["handshake", "detach"])
    async def test_domain_dies_at_each_step(self, phase: str) -> None:
        """Whenever the guest is destroyed, the backend releases everything of that guest's; its neighbour is not
        affected."""
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
    @each("phase", ["handshake", "detach"])
    async def test_process_dies_at_each_step(self, side: Side, phase: str) -> None:
        """Whenever the process of one end is killed, the next process takes its place: a pair that was connecting
        works, and a pair that was closing closes."""
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
        """Start one end, and kill it at a step of a phase. Return the device, and whether that end survived because
        the phase has fewer steps; the device is detached then."""
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
        """If the connection to the store ends at any step of a handshake, the pair still connects, and works."""
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
        """If a call to the machine fails, the device closes with an error node, its neighbour is not affected, and the
        device works when it is attached again."""
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
        """A frontend reconnects by itself. A backend does, too, if the call failed while it was connected; otherwise it
        must say why in an error node, and stay closed."""
        if side is Side.BACKEND:
            seen = await it.machine.until(id, backend=(State.CONNECTED, State.CLOSING, State.CLOSED))
            if seen.backend is not State.CONNECTED:
                assert await it.machine.read(id.error_path(Side.BACKEND)), "it closed, and left no error node"
                return
        await it.works(guest, id)

    @each("seed", [1, 2, 3])
    async def test_watches_are_late(self, seed: int) -> None:
        """Watch events are hints: late, doubled and out of order, they still connect and close a pair, repeatedly."""
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
