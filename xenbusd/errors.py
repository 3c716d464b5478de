"""What can go wrong, and who is to blame.

XenbusdError                     .context: dict for the log line
├── LocalProtocolError           our bug: illegal transition, packet we may not send      -> the task dies, loudly
├── OtherendError                the other end broke the contract                          -> this device closes
│   ├── RingError                ring indices or slots that cannot be
│   ├── NodeValueError           a node of the other end that does not parse
│   ├── OtherendTimeout          it did not answer within a deadline
│   └── OtherendGone             its directory or domain has vanished
├── ConnectionEnded                   not a fault: the device's connection ends; unwinds a driver
├── StoreError(op, path, errno)  xenstored said no
│   ├── NodeNotFound · AccessDenied · NodeExists · QuotaExceeded
│   └── TransactionConflict      never leaves transaction() unless its retries are used up
├── StoreLost                    the store connection ended; the client reconnects by itself
├── HypercallError(call, errno)  Xen, or the kernel driver to it, said no
│   ├── GrantError
│   └── EventChannelError
├── HotplugError(script, status) a hotplug script failed
├── DriverError                  no driver, two drivers for one class, wrong API version
├── ResourceError                   a disk image that cannot be opened or served as asked
└── UsageError                   a command or a configuration file asks for what cannot be; exit status 2
"""

from __future__ import annotations

import os


class XenbusdError(Exception):
    """Base of all our errors.

    Args:
        message: one sentence: what is wrong, and what to do where that is known.
        context: more facts for the log line.
    """

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context


class LocalProtocolError(XenbusdError):
    """Our own bug: we were about to do what the protocol forbids."""


class OtherendError(XenbusdError):
    """The other end broke the contract; its device closes, nothing else is harmed."""


class RingError(OtherendError):
    """The ring holds what no honest peer writes."""


class NodeValueError(OtherendError):
    """A node holds a value that does not parse or is out of range."""


class OtherendTimeout(OtherendError):
    """The other end did not move within its deadline."""


class OtherendGone(OtherendError):
    """The other end's directory or domain has vanished."""


class ConnectionEnded(XenbusdError):
    """The connection is to end in order; raised inside a driver to unwind it, never an error."""


class StoreError(XenbusdError):
    """xenstored refused an operation.

    Args:
        op: the operation as Xen spells it: "READ", "WRITE", ...
        path: the path it was about, or "" where there is none.
        errno: the positive errno of the answer.
    """

    def __init__(self, op: str, path: str, errno: int) -> None:
        super().__init__(f"store: {op} {path or '-'}: {os.strerror(errno)}", op=op, path=path, errno=errno)
        self.op = op
        self.path = path
        self.errno = errno


class NodeNotFound(StoreError):
    """ENOENT."""


class AccessDenied(StoreError):
    """EACCES or EPERM."""


class NodeExists(StoreError):
    """EEXIST: for WATCH, the same path and token are watched already."""


class QuotaExceeded(StoreError):
    """ENOSPC, E2BIG or EDQUOT: a limit of the store is reached."""


class TransactionConflict(StoreError):
    """EAGAIN on commit: what the transaction saw has changed; begin again."""


class StoreLost(XenbusdError):
    """The connection to the store has ended."""


class HypercallError(XenbusdError):
    """A call of libxengnttab or libxenevtchn, or its counterpart on the simulated host, failed.

    Args:
        call: the library function, as its header spells it.
        errno: the positive errno.
        about: domain, references, port: what it was asked to do.
    """

    def __init__(self, call: str, errno: int, about: str) -> None:
        super().__init__(f"{call}({about}): {os.strerror(errno)}", call=call, errno=errno)
        self.call = call
        self.errno = errno


class GrantError(HypercallError):
    """A grant could not be shared, mapped, copied or taken back."""


class EventChannelError(HypercallError):
    """An event channel could not be allocated, bound, notified or closed."""


class HotplugError(XenbusdError):
    """A hotplug script failed.

    Args:
        script: its path.
        status: its exit status, negative for a signal.
        stderr_tail: the last of what it printed.
    """

    def __init__(self, script: str, status: int, stderr_tail: str) -> None:
        super().__init__(f"hotplug script {script} exited with {status}: {stderr_tail or 'no output'}", status=status)
        self.script = script
        self.status = status
        self.stderr_tail = stderr_tail


class DriverError(XenbusdError):
    """A driver is missing, doubled, or written for another API version."""


class ResourceError(XenbusdError):
    """A disk image cannot be opened, or not as asked.

    Args:
        message: the sentence for the administrator.
        errno: for the error node.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message, errno=errno)
        self.errno = errno


class UsageError(XenbusdError):
    """The user asked for what cannot be done; the message says what to do instead."""
