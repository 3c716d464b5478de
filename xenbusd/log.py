"""The log. This module alone sets up structlog.

Lines go to stderr. Four formats:

* `journal`: `<4>otherend.fault device=vbd-3-51712 ...`: the number is the priority for journald, which adds the time.
* `console`: time, level, event and keys, for people; in colour on a terminal.
* `json`: one object on each line, for shippers.
* `auto`: `journal` when stderr is connected to journald (JOURNAL_STREAM names it), else `console`, in a file or a pipe
  without colour. `json` is never chosen automatically: it must be asked for.

Text that the other end wrote is hostile here too: every value is cut at 128 bytes and its control characters are
escaped before any format sees it. Lines that the other end can cause at will are rate-limited for each device
(XSA-180): warnings about it (`otherend.*`), and each line whose writer says so with `by_otherend=True`, a key that is
not printed.

`xenbusd.events` lists all events, and says when each is written.

Decision: D53.

structlog is imported at the first use, because xenbusctl, which logs nothing, should start fast.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from xenbusd.errors import UsageError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

FORMATS = ("auto", "console", "json", "journal")
LEVELS = ("debug", "info", "warning", "error")

TEXT_MAX = 128
"""Bytes of one value, in UTF-8, before it is cut: the value may be the other end's."""

OWN_TEXT = {"error": 1024, "output": 2048, "exception": 16384}
"""Keys whose values are sentences of ours, or a script's output, with their own limits in bytes."""

ITEMS_MAX = 32
"""Items of one list or mapping that are shown."""

PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's numbers (sd-daemon(3))."""

Event = MutableMapping[str, Any]
Logger = Any


def setup(format: str = "auto", level: str = "info") -> None:
    """Set up the log. Call this once at the start, and again to change format or level.

    Args:
        format: one of `FORMATS`.
        level: one of `LEVELS`: the least that is written.

    Raises:
        UsageError: no such format or level.
    """
    if format not in FORMATS:
        raise UsageError(f"log format: {format!r} is none of {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise UsageError(f"log level: {level!r} is none of {', '.join(LEVELS)}")
    import structlog

    chosen = _guess() if format == "auto" else format
    threshold = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _Limit(RateLimit()),
            structlog.processors.format_exc_info,
            clean,
            *_renderers(chosen),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Forward) for handler in root.handlers):
        root.addHandler(_Forward(logging.WARNING))


def get(**bindings: object) -> FilteringBoundLogger:
    """Return a logger with `bindings` on each of its lines: `get(device="vbd-3-51712")`."""
    import structlog

    if not structlog.is_configured():
        setup()
    return cast("FilteringBoundLogger", structlog.get_logger().bind(**bindings))


def _guess() -> str:
    """journal if stderr is the very stream that journald gave us (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return "console"
    return "journal" if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" else "console"


def _renderers(format: str) -> list[Callable[[Logger, str, Event], Any]]:
    """The last processors of a format."""
    import structlog

    if format == "journal":
        return [_journal]
    if format == "json":
        return [structlog.processors.TimeStamper(fmt="iso", utc=True), _json]
    terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if terminal else "iso", utc=not terminal),
        structlog.dev.ConsoleRenderer(
            colors=terminal and "NO_COLOR" not in os.environ, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


class _Stderr:
    """Writes whole lines to the file that is stderr at that moment. A log that cannot be written never harms the
    daemon."""

    def __init__(self, *args: object) -> None:
        del args

    def msg(self, message: str) -> None:
        try:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            return

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Passes lines that libraries (asyncio above all) log through the standard library's logging on to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        name = record.levelname.lower()
        try:
            method = getattr(get(library=record.name), name if name in PRIORITY else "error")
            method(
                "library.logged",
                error=record.getMessage(),
                **({"exc_info": record.exc_info} if record.exc_info else {}),
            )
        except Exception:
            self.handleError(record)


def escape(text: str | bytes, limit: int = TEXT_MAX) -> str:
    """Make text of the other end harmless: control and formatting characters escaped, cut at `limit` bytes.

    A text that was cut ends in "…", which is not counted.
    """
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("utf-8", "backslashreplace")
    head = text[: limit + 1]
    if not head.isprintable():
        head = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in head)
    raw = head.encode("utf-8", "backslashreplace")
    if len(raw) <= limit and len(text) <= limit:
        return head
    return raw[:limit].decode("utf-8", "ignore") + "…"


def clean(_logger: Logger, _method: str, event: Event) -> Event:
    """Processor: make every value a short harmless text, or a number."""
    for key, value in event.items():
        event[key] = _clean(value, OWN_TEXT.get(key, TEXT_MAX), lines=key == "exception")
    return event


def _clean(value: object, limit: int, *, lines: bool = False) -> object:
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.name
    if lines and isinstance(value, str):
        return "\n".join(escape(line, limit) for line in value[-limit:].splitlines())
    if isinstance(value, str | bytes):
        return escape(value, limit)
    if isinstance(value, Mapping):
        return {escape(str(k)): _clean(v, limit) for k, v in list(value.items())[:ITEMS_MAX]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, limit) for item in list(value)[:ITEMS_MAX]]
    try:
        return escape(str(value), limit)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _journal(_logger: Logger, _method: str, event: Event) -> str:
    """Renderer: `<n>event key=value ...`; a traceback follows in lines of its own with the same priority."""
    prefix = f"<{PRIORITY.get(str(event.pop('level', 'info')), 6)}>"
    trace = str(event.pop("exception", "")).splitlines()
    words = [str(event.pop("event", ""))]
    words += [f"{key}={_word(value)}" for key, value in event.items()]
    return "\n".join(prefix + line for line in [" ".join(words), *trace])


def _word(value: object) -> str:
    """A value of key=value: in quotes when it is empty or has a space, a quote or an equals sign; a list as JSON."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    if value and not any(c in value for c in ' "='):
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _json(_logger: Logger, _method: str, event: Event) -> str:
    """Renderer: one JSON object, on one line."""
    return json.dumps(event, ensure_ascii=False, default=str)


class RateLimit:
    """A token bucket for each key: `count` at once, then `count` in each `period_s`.

    Args:
        keys_max: most keys that are remembered; a new key replaces the one seen first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        count: int = 10,
        period_s: float = 60.0,
        *,
        keys_max: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._per_second = count / period_s
        self._keys_max = keys_max
        self._clock = clock
        self._buckets: dict[Hashable, list[float]] = {}

    def admit(self, key: Hashable) -> int | None:
        """Return None if this line must be dropped; otherwise the number of lines dropped since the last that was
        not."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._keys_max:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[key] = [float(self._count), now, 0.0]
        tokens, then, dropped = bucket
        tokens = min(float(self._count), tokens + (now - then) * self._per_second)
        if tokens < 1.0:
            bucket[:] = tokens, now, dropped + 1
            return None
        bucket[:] = tokens - 1.0, now, 0.0
        return int(dropped)

    def unreported(self, belongs: Callable[[Hashable], bool]) -> int:
        """Return the number of lines dropped since the last report, for all keys for which `belongs` is true. This call
        counts as their report."""
        buckets = [bucket for key, bucket in self._buckets.items() if belongs(key)]
        count = int(sum(bucket[2] for bucket in buckets))
        for bucket in buckets:
            bucket[2] = 0.0
        return count


class _Limit:
    """Processor: drop lines that the other end causes too often, and report later how many were dropped (XSA-180).

    It counts warnings whose event starts with "otherend.", and lines marked with `by_otherend=True`, by device and
    event. The next line of the kind that passes carries `suppressed=N`; so does the device's `device.closed`, for all
    kinds.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    def __call__(self, _logger: Logger, _method: str, event: Event) -> Event:
        from structlog import DropEvent

        name, device = str(event.get("event", "")), str(event.get("device", ""))
        about_it = event.get("level") == "warning" and name.startswith("otherend.")
        if not event.pop("by_otherend", False) and not about_it:
            return event
        suppressed = self._limit.admit((device, name))
        if suppressed is None:
            raise DropEvent
        if name == "device.closed":
            suppressed += self._limit.unreported(lambda key: isinstance(key, tuple) and key[0] == device)
        if suppressed:
            event["suppressed"] = suppressed
        return event
