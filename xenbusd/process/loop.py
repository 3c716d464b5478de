"""The event loop: uvloop where it is installed, asyncio's own otherwise.

asyncio is imported when a loop is made: a command's `--help` lists `CHOICES`, and needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from xenbusd.errors import UsageError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

CHOICES = ("auto", "uvloop", "asyncio")
"""The values of `loop` in a configuration file, and of `--loop`."""

Factory = Callable[[], "asyncio.AbstractEventLoop"]


def factory(loop: str = "auto") -> Factory:
    """Return a factory of event loops of one kind.

    Args:
        loop: "uvloop", "asyncio", or "auto": uvloop if it can be imported.

    Raises:
        UsageError: there is no such kind, or uvloop is not installed.
    """
    import asyncio

    if loop not in CHOICES:
        raise UsageError(f"loop: {loop!r} is none of {', '.join(CHOICES)}")
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError as error:
            if loop == "uvloop":
                raise UsageError(
                    f"loop: uvloop cannot be used here ({error}); pip install uvloop, or choose asyncio"
                ) from error
        else:
            made: Factory = uvloop.new_event_loop
            return made
    return asyncio.SelectorEventLoop


def run(main: Coroutine[Any, Any, T], *, loop: str = "auto") -> T:
    """Run `main` to its end on a new event loop and return its result.

    Ctrl-C cancels `main` and then raises KeyboardInterrupt, as `asyncio.run` does.

    Raises:
        UsageError: as `factory` does; `main` is then closed without having run.
    """
    import asyncio

    try:
        made = factory(loop)
    except UsageError:
        main.close()
        raise
    with asyncio.Runner(loop_factory=made) as runner:
        return runner.run(main)
