"""The fixtures of every test: an event loop, or both of ours in turn, and a log that pytest can capture.

Which loop a coroutine test runs on is decided here and nowhere else:

* Tests of what uses the loop directly (transports, sockets, signals, child processes, `add_reader`, timers) run twice,
  on asyncio's own loop and on uvloop. These are the tests of the folders in BOTH_LOOPS, and each test that is marked
  `both_loops`.
* Every other coroutine test uses the loop through that code only. It runs once, on one of the two, chosen by its name:
  half of them on each loop, and the same test always on the same one.
* A test of one loop alone says `@pytest.mark.asyncio(loop_factories=["asyncio"])`.

Decision: D51.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import pytest

from xenbusd import log

hypothesis.settings.register_profile("untimed", deadline=None)  # tests never time
hypothesis.settings.load_profile("untimed")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

TESTS = Path(__file__).parent

BOTH_LOOPS = (
    "unit/control",
    "unit/host",
    "unit/process",
    "unit/store",
    "unit/vbd/nbd",
    "machine/cli",
    "machine/store",
)
"""Folders of tests about code that calls the event loop itself."""


def uvloop_factory() -> LoopFactory:
    """uvloop's way to make a loop; where it is not installed, one that skips the test and says so."""
    try:
        import uvloop
    except ImportError:
        return lambda: pytest.skip("uvloop is not installed: pip install uvloop")
    factory: LoopFactory = uvloop.new_event_loop
    return factory


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """The loops that one coroutine test runs on."""
    del config
    loops = {"asyncio": patient(asyncio.SelectorEventLoop), "uvloop": patient(uvloop_factory())}
    names_its_own = any("loop_factories" in mark.kwargs for mark in item.iter_markers("asyncio"))
    if names_its_own or item.get_closest_marker("both_loops") or is_about_the_loop(item.path):
        return loops
    name = sorted(loops)[zlib.crc32(item.nodeid.encode()) % len(loops)]
    return {name: loops[name]}


def is_about_the_loop(path: Path) -> bool:
    """Whether a test file lies in one of the folders whose tests run on both loops."""
    return any(path.is_relative_to(TESTS / folder) for folder in BOTH_LOOPS)


def patient(factory: LoopFactory) -> LoopFactory:
    """Have a loop's debug mode find everything but slowness: tests never time, and the machine may be busy."""

    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.slow_callback_duration = float("inf")
        return loop

    return make


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks of this folder."""
    config.addinivalue_line("markers", "both_loops: run this coroutine test on asyncio's own loop and on uvloop")
    config.addinivalue_line("markers", "alone: run this test with no other test beside it (see `make test`)")


@pytest.fixture(scope="session", autouse=True)
def _log_for_people() -> None:
    """Send every log line to stderr, where pytest shows it beside the test that failed."""
    log.setup("console", "debug")
