"""How a command ends: 0 done, 1 it failed, 2 it was asked for what cannot be; always with a sentence, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xenbusd.errors import DriverError, UsageError, XenbusdError
from xenbusd.store.wire import InvalidPath, InvalidPayload

FAILED = 1
USAGE = 2


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what a command raises into a sentence on stderr and an exit status."""
    try:
        yield
    except (UsageError, DriverError, InvalidPath, InvalidPayload) as error:
        complain(error, USAGE)
    except XenbusdError as error:
        complain(error, FAILED)
    except ExceptionGroup as group:  # one of the daemon's own tasks has ended; the first to fail says why
        errors = group.subgroup(XenbusdError)
        if errors is None:
            raise
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        complain(first, FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has had enough
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def complain(error: BaseException, status: int) -> None:
    """Say what is wrong, and exit."""
    name = os.path.basename(sys.argv[0]).replace("__main__.py", "xenbusd")
    click.echo(f"{name}: {error}", err=True)
    raise SystemExit(status)
