"""`xenbusd serve` with a profiler in it that two signals switch: SIGUSR1 on, SIGUSR2 off and written to $PROFILE."""

from __future__ import annotations

import cProfile
import os
import signal
from types import FrameType

from xenbusd.__main__ import main

_profile = cProfile.Profile()


def _on(number: int, frame: FrameType | None) -> None:
    del number, frame
    _profile.enable()


def _off(number: int, frame: FrameType | None) -> None:
    del number, frame
    _profile.disable()
    path = os.environ["PROFILE"]
    _profile.dump_stats(path + ".new")
    os.rename(path + ".new", path)
    _profile.clear()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _on)
    signal.signal(signal.SIGUSR2, _off)
    main()
