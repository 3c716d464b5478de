"""xenbusd.testing.trial: counts every descriptor and task that a device leaves behind, or that has gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from xenbusd.api import Backend, Frontend
from xenbusd.testing import trial as trial_module
from xenbusd.testing.trial import PairUnderTest, Trial, trial
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


class Echo(PairUnderTest):
    """A pair without a use."""

    backend: ClassVar[type[Backend]] = EchoBackend
    frontend: ClassVar[type[Frontend]] = EchoFrontend


@pytest.fixture
async def it() -> AsyncIterator[Trial]:
    """A machine with both daemons, and no device."""
    async with trial(Echo()) as it:
        await it.serve()
        await it.agent()
        yield it


async def test_stock_taken_again_and_again_is_the_same(it: Trial) -> None:
    """Taking stock opens connections of its own; it leaves none, and waits for none of another's."""
    before = await it.remains()
    assert [await it.remains() for _ in range(50)] == [before] * 50
    await it.nothing_left(before)


async def test_a_descriptor_too_many_or_too_few(it: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was opened since is left; one that was closed since was not ours to close. Both are reported."""
    monkeypatch.setattr(trial_module, "DEADLINE_S", 0.3)
    nothing = await it.remains()
    with (tmp_path / "log").open("w"):
        with pytest.raises(AssertionError, match=r"this is left: \['1 descriptors of .*log'\] instead of \[\]"):
            await it.nothing_left(nothing)
        with_log = await it.remains()
    with pytest.raises(AssertionError, match=r"this is left: \[\] instead of \['1 descriptors of .*log'\]"):
        await it.nothing_left(with_log)


async def test_a_task_too_many_or_too_few(it: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for descriptors."""
    monkeypatch.setattr(trial_module, "DEADLINE_S", 0.3)
    nothing = await it.remains()
    task = asyncio.create_task(asyncio.Event().wait())
    with pytest.raises(AssertionError, match=r"this is left: \['1 tasks in Event\.wait'\]"):
        await it.nothing_left(nothing)
    with_task = await it.remains()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    with pytest.raises(AssertionError, match=r"instead of \['1 tasks in Event\.wait'\]"):
        await it.nothing_left(with_task)
