"""xenbusd.process.loop: the choice of the event loop, and the message for a wrong one."""

from __future__ import annotations

import asyncio
import sys

import pytest

from xenbusd.errors import UsageError
from xenbusd.process.loop import factory, run


async def kind_of_loop() -> str:
    """The package that the running loop comes from."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_asyncio_is_asyncios_own_loop() -> None:
    """`asyncio` is never uvloop, installed or not."""
    assert run(kind_of_loop(), loop="asyncio") == "asyncio"


def test_auto_prefers_uvloop() -> None:
    """`auto` takes uvloop where it can be imported."""
    pytest.importorskip("uvloop")
    assert run(kind_of_loop()) == "uvloop"
    assert run(kind_of_loop(), loop="uvloop") == "uvloop"


def test_auto_does_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` falls back to asyncio where uvloop is missing."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(kind_of_loop()) == "asyncio"


def test_uvloop_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for uvloop where it is missing says how to get it, and leaves no coroutine behind."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    main = kind_of_loop()
    with pytest.raises(UsageError, match="pip install uvloop"):
        run(main, loop="uvloop")
    with pytest.raises(RuntimeError, match="cannot reuse"):
        main.send(None)


def test_unknown_kind_is_refused() -> None:
    """An unknown kind of loop is refused with a list of the known ones."""
    with pytest.raises(UsageError, match="none of auto, uvloop, asyncio"):
        factory("trio")


def test_result_and_error_come_through() -> None:
    """`run` returns or raises what the coroutine does."""

    async def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        run(fail())
