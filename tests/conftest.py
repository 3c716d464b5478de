"""What every test gets: both event loops for coroutine tests, and a log that pytest can capture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import hypothesis
import pytest

from xenbusd import log

hypothesis.settings.register_profile("untimed", deadline=None)  # tests never time
hypothesis.settings.load_profile("untimed")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def uvloop_factory() -> LoopFactory:
    """uvloop's way to make a loop; where it is not installed, one that skips the test and says so."""
    try:
        import uvloop
    except ImportError:
        return lambda: pytest.skip("uvloop is not installed: pip install uvloop")
    factory: LoopFactory = uvloop.new_event_loop
    return factory


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Run each coroutine test twice: on asyncio's own loop and on uvloop.

    A test that is about one of them alone says `@pytest.mark.asyncio(loop_factories=["asyncio"])`.
    """
    del config, item
    return {"asyncio": patient(asyncio.SelectorEventLoop), "uvloop": patient(uvloop_factory())}


def patient(factory: LoopFactory) -> LoopFactory:
    """Have a loop's debug mode find everything but slowness: tests never time, and the machine may be busy."""

    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.slow_callback_duration = float("inf")
        return loop

    return make


@pytest.fixture(scope="session", autouse=True)
def _log_for_people() -> None:
    """Send every log line to stderr, where pytest shows it beside the test that failed."""
    log.setup("console", "debug")
