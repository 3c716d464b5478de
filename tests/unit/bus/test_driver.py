"""xenbusd.bus.driver: what a class without declarations of its own accepts."""

from __future__ import annotations

import pytest

from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.driver import Backend
from xenbusd.errors import UsageError
from xenbusd.schema import Option, Schema, one_of


class TapeBackend(Backend, device_class="tape"):
    """Nothing of it can be changed in use."""

    async def run(self, dev: BackendDevice) -> None: ...


class LiveTapeBackend(TapeBackend, device_class="tape"):
    """Its speed can."""

    live = Schema(Option("speed", one_of("1", "2")))


def test_parameters_of_set_are_the_declared_ones() -> None:
    """Each is checked, and an unknown one refused with those that there are, and the one that was meant."""
    assert LiveTapeBackend.live_keys({"speed": "2"}) == {"speed": "2"}
    for driver, given, sentence in (
        (TapeBackend, {"speed": "2"}, "tape: 'speed' cannot be changed in use"),
        (LiveTapeBackend, {"reel": "2"}, "tape: 'reel' cannot be changed in use; speed can"),
        (LiveTapeBackend, {"sped": "2"}, "tape: 'sped' cannot be changed in use; speed can; did you mean speed?"),
        (LiveTapeBackend, {"speed": "3"}, "tape: speed: '3' is none of 1, 2"),
    ):
        with pytest.raises(UsageError) as caught:
            driver.live_keys(given)
        assert str(caught.value) == sentence
