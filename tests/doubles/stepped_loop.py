"""An event loop that runs one turn when a test says so, with a clock of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast


class Loop(asyncio.SelectorEventLoop):
    """An event loop without a clock of its own, and without threads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        """The time that the test has set."""
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Call the function at once, in this thread."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def turn(self) -> None:
        """Run until no callback is ready."""
        ready = cast("deque[object]", vars(self)["_ready"])
        while ready:
            self.stop()
            self.run_forever()

    def next_timer(self) -> float | None:
        """The time at which the next timer is due."""
        timers = cast("list[asyncio.TimerHandle]", vars(self)["_scheduled"])
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)
