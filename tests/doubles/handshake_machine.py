"""A state machine of both real ends of a device: its rules are all the steps, faults and deaths that may happen."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.doubles.handshake_world import World
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.driver import Backend, Driver, Frontend
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.handover import AfterCleanStop, InOrder
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import ConnectionEnded, NodeValueError, OtherendError, ResourceError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.ring.layout import Raw, RingFormat

RING = RingFormat(64, Raw, Raw)
ID = DeviceId(DeviceClass("toy"), Domid(5), Devid(0), DOM0)
BACK, FRONT = Side.BACKEND, Side.FRONTEND

LONG_S = 55.0
"""Longer than a resync and, after it, the deadlines of both ends in a row."""


class Faults(Counter[str]):
    """The faults to inject, and how often each."""

    @contextmanager
    def at(self, point: str, error: Exception) -> Iterator[None]:
        """Fail here if a fault is due."""
        if self[point] > 0:
            self[point] -= 1
            raise error
        yield


class HandshakeMachine(RuleBasedStateMachine):
    """Rules: one step of the store, one of the clock, a toolstack, deaths, and drivers that fail."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ID)
        self.faults = faults = Faults()
        self.eager = self.in_order = False
        machine = self

        class ToyBackend(Backend, device_class="toy"):
            async def run(self, dev: BackendDevice) -> None:
                with faults.at("early", ResourceError("no such image", errno.ENOENT)):
                    await dev.advertise(feature_toy=1)
                with faults.at("open", ResourceError("no such image", errno.ENOENT)):
                    async with dev.connect(RING, journal=InOrder() if machine.in_order else AfterCleanStop()) as link:
                        await link.serve(lambda: None)

        class ToyFrontend(Frontend, device_class="toy"):
            async def run(self, dev: FrontendDevice) -> None:
                with faults.at("probe", NodeValueError("no such feature")):
                    if not machine.eager:
                        await dev.backend_ready()
                async with dev.offer(RING) as link:
                    with faults.at("geometry", NodeValueError("sectors is missing")):
                        await dev.connected()
                    await link.serve(lambda: None)

        self.drivers: dict[Side, type[Driver[Any]]] = {BACK: ToyBackend, FRONT: ToyFrontend}
        self.online = False

    # -- the toolstack ---------------------------------------------------------------------------------------------

    @initialize(script=st.booleans(), eager=st.booleans(), in_order=st.booleans())
    def begin(self, script: bool = False, eager: bool = False, in_order: bool = False) -> None:
        """A device. With a script, somebody else runs it. An eager frontend does not wait for InitWait (T49). If it
        answers in order, the next process may adopt a killed one's ring.
        """
        self.script = script
        self.eager = eager
        self.in_order = in_order
        self.attach()

    @precondition(lambda self: ID.backend_path + "/state" not in self.world.store.nodes)
    @rule()
    def attach(self) -> None:
        """Both directories, in one transaction."""
        back, front = ID.backend_path, ID.frontend_path
        nodes: dict[str, bytes | None] = {
            f"{front}/backend": back.encode(),
            f"{front}/backend-id": b"0",
            f"{front}/state": b"1",
            f"{back}/frontend": front.encode(),
            f"{back}/frontend-id": b"5",
            f"{back}/online": b"1",
            f"{back}/state": b"1",
        }
        if self.script:
            nodes |= {f"{back}/script": b"/etc/xen/scripts/block", f"{back}/hotplug-status": b""}
            nodes["/libxl/5/device/toy/0/backend"] = back.encode()
        self.world.store.commit(nodes)
        self.online = True

    @precondition(lambda self: self.online)
    @rule()
    def detach(self) -> None:
        """T52: online 0 and state 5, in one transaction."""
        changes: dict[str, bytes | None] = {f"{ID.backend_path}/online": b"0"}
        if self.world.state(BACK) is not State.CLOSED:
            changes[f"{ID.backend_path}/state"] = b"5"
        self.world.store.commit(changes)
        self.online = False

    @precondition(lambda self: not self.online and self.world.state(BACK) is State.CLOSED)
    @rule()
    def remove(self) -> None:
        """T53: after the backend's Closed."""
        self.world.store.commit({ID.backend_path: None, ID.frontend_path: None})

    @rule()
    def force(self) -> None:
        """T52: the frontend's directory first, then online 0 and state 5."""
        changes: dict[str, bytes | None] = {ID.frontend_path: None}
        if self.world.state(BACK) is not State.UNKNOWN:
            changes |= {f"{ID.backend_path}/online": b"0", f"{ID.backend_path}/state": b"5"}
        self.world.store.commit(changes)
        self.online = False

    @precondition(lambda self: self.script and self.world.state(BACK) is State.INIT_WAIT)
    @rule()
    def script_succeeds(self) -> None:
        """The hotplug gate opens."""
        self.world.store.commit({f"{ID.backend_path}/hotplug-status": b"connected"})

    # -- steps -----------------------------------------------------------------------------------------------------

    @rule(side=st.sampled_from(Side), times=st.integers(1, 12))
    def serve(self, side: Side, times: int) -> None:
        """The store takes some requests of one end."""
        for _ in range(times):
            if side in self.world.ends:
                self.world.ends[side].serve()

    @rule(side=st.sampled_from(Side), times=st.integers(1, 12))
    def deliver(self, side: Side, times: int) -> None:
        """One end gets some answers and events."""
        for _ in range(times):
            if side in self.world.ends:
                self.world.ends[side].deliver()

    @rule(side=st.sampled_from(Side), times=st.integers(1, 40))
    def run_one(self, side: Side, times: int) -> None:
        """Run one end alone; the other stands still."""
        for _ in range(times):
            if side in self.world.ends:
                self.world.ends[side].serve()
                self.world.ends[side].deliver()

    @rule()
    def tick(self) -> None:
        """Let time pass while requests and events are under way."""
        self.world.tick()

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 12.0]))
    def run_both(self, seconds: float) -> None:
        """Let everything happen that can happen."""
        self.world.run(seconds)

    # -- lives and deaths ------------------------------------------------------------------------------------------

    @rule(side=st.sampled_from(Side))
    def start(self, side: Side) -> None:
        """A process begins where there is none."""
        if side not in self.world.ends:
            self.world.start(side, self.drivers[side])

    @rule(side=st.sampled_from(Side))
    def kill(self, side: Side) -> None:
        """SIGKILL."""
        if side in self.world.ends:
            self.world.ends.pop(side).kill()

    @rule(side=st.sampled_from(Side))
    def stop(self, side: Side) -> None:
        """SIGTERM."""
        end = self.world.ends.get(side)
        if end is not None and end.stopping is None:
            end.stop()

    @rule(side=st.sampled_from(Side))
    def bury(self, side: Side) -> None:
        """A process that has left in order ends."""
        if side in self.world.ends and self.world.ends[side].stopped:
            self.world.ends.pop(side).kill()

    @rule(point=st.sampled_from(["early", "open", "probe", "geometry"]))
    def break_driver(self, point: str) -> None:
        """The next connection fails at some point."""
        self.faults[point] = 1

    @rule(side=st.sampled_from(Side))
    def break_ring(self, side: Side) -> None:
        """The data path finds something impossible."""
        end = self.world.ends.get(side)
        if end is not None and end.device is not None and end.device.details is not None:
            end.device.fail(OtherendError("nonsense in the ring"))
            self.world.loop.turn()

    @rule(side=st.sampled_from(Side))
    def end_connection(self, side: Side) -> None:
        """A driver ends its connection by itself."""
        end = self.world.ends.get(side)
        if end is not None and end.device is not None and end.device.details is not None:
            end.device.fail(ConnectionEnded("enough"))
            self.world.loop.turn()

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def no_bug_was_met(self) -> None:
        """No device crashed, no step was illegal."""
        assert not self.world.log.crashes

    def teardown(self) -> None:
        """Give both ends a process, a gate and time; then nothing may be left to wait for."""
        try:
            self.settle()
        finally:
            self.world.close()

    def settle(self) -> None:
        """Let the pair run undisturbed, and check the states in which it ends up."""
        if not hasattr(self, "script"):
            return
        world = self.world
        for side in Side:
            end = world.ends.get(side)
            if end is not None and end.stopping is not None:
                world.run(LONG_S)
                assert end.stopped, f"the {side.value} does not stop"
                world.ends.pop(side).kill()
            if side not in world.ends:
                world.start(side, self.drivers[side])
        world.run(LONG_S)
        if self.script and world.state(BACK) is State.INIT_WAIT:
            self.script_succeeds()
            world.run(LONG_S)
        back, front = world.ends[BACK], world.ends[FRONT]
        self.no_bug_was_met()
        if world.state(BACK) is State.UNKNOWN:
            assert back.device is None
            assert not back.host.mappings
        elif self.gave_up():
            assert ID.error_path(BACK) in world.store.nodes
            assert not back.host.mappings
        elif self.online:
            assert world.state(BACK) is world.state(FRONT) is State.CONNECTED, self.describe()
            assert [mapping.gref for mapping in back.host.mappings] == list(front.host.shares[0].grefs)
            assert len(front.host.shares) == 1
            assert world.machine.bound == {back.host.ports[0]: front.host.ports[0]}
        else:
            assert world.state(BACK) is State.CLOSED, self.describe()
            assert not back.host.mappings
            assert not front.host.shares

    def describe(self) -> str:
        """Describe which end waits for what."""
        lines = [f"online {self.online}"]
        for side, end in self.world.ends.items():
            lines.append(f"{side.value} {self.world.state(side).title}")
            if end.device is not None:
                dev = end.device
                lines.append(f"  has seen {dev.seen}, wrote {dev.state.title}, waits for {dev.waiting_for!r}")
        return "\n".join(lines)

    def gave_up(self) -> bool:
        """Whether the backend failed before its frontend did anything: by design, it reports that and leaves the rest
        to the toolstack.
        """
        dev = self.world.ends[BACK].device
        return (
            self.online
            and isinstance(dev, BackendLife)
            and not dev.connection.otherend_moved
            and (self.world.state(BACK), self.world.state(FRONT)) == (State.CLOSED, State.INITIALISING)
        )
