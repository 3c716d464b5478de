"""How a command ends: with status 0, or with a sentence on stderr and status 1 (it failed) or 2 (it cannot be done).

No error that is foreseen ends in a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xenbusd.errors import DriverError, UsageError, XenbusdError

FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""As a shell reports a program that SIGINT has ended."""


@contextmanager
def sentences() -> Iterator[None]:
    """Turn an error that a command raises into a sentence on stderr and an exit status."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # our reader has closed the pipe
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except ExceptionGroup as group:  # one of the daemon's own tasks has ended; the first to fail says why
        errors = group.subgroup(XenbusdError)
        if errors is None:
            raise
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        complain(first, FAILED)
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        complain(error, status)


def _status(error: Exception) -> int | None:
    """The exit status for an error; None for one that only a bug can raise."""
    from xenbusd.store.wire import InvalidPath, InvalidPayload

    if isinstance(error, UsageError | DriverError | InvalidPath | InvalidPayload):
        return USAGE
    return FAILED if isinstance(error, XenbusdError) else None


def complain(error: BaseException, status: int) -> None:
    """Print an error's sentence, and exit."""
    name = os.path.basename(sys.argv[0]).replace("__main__.py", "xenbusd")
    click.echo(f"{name}: {error}", err=True)
    raise SystemExit(status)
