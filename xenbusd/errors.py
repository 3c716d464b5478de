"""Every error that xenbusd raises on purpose, and who is to blame for it.

class                             to blame, and for what                                  what follows
XenbusdError                      .context has further facts for the log line
├── LocalProtocolError            ourselves: an illegal transition, a forbidden packet    the task dies with a traceback
├── OtherendError                 the other end: it broke the contract                    this device closes
│   ├── RingError                 impossible ring indices or slots
│   ├── NodeValueError            a node whose value does not parse
│   ├── OtherendTimeout           it did not act within a deadline
│   └── OtherendGone              its directory or domain has vanished
├── ConnectionEnded               nobody: the connection ends in order                    the driver is unwound
├── StoreError(op, path, errno)   xenstored: it refused an operation
│   ├── NodeNotFound · AccessDenied · NodeExists · QuotaExceeded
│   └── TransactionConflict       leaves transaction() only if its retries are used up
├── StoreLost                     xenstored: the connection ended                         the client reconnects
├── HypercallError(call, errno)   Xen, or the kernel's driver for it: it refused a call
│   ├── GrantError
│   └── EventChannelError
├── HotplugError(script, status)  a hotplug script: it failed                             this device closes
├── ResourceError(text, errno)    the host: a disk image or a TPM cannot be had           this device closes
├── DriverError                   an installed package: no driver, two for one class, wrong API version
└── UsageError                    the user: a command or a file asks for the impossible   exit status 2

Decision: D60.
"""

from __future__ import annotations

import os


class XenbusdError(Exception):
    """Base of all errors of xenbusd.

    Args:
        message: one sentence: the fault, and the remedy if it is known.
        context: further facts for the log line.
    """

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context


class LocalProtocolError(XenbusdError):
    """A bug of our own: the protocol forbids the act that was about to be done."""


class OtherendError(XenbusdError):
    """The other end broke the contract. Its device closes; no other device is affected."""


class RingError(OtherendError):
    """The ring has indices or slots that no honest peer writes."""


class NodeValueError(OtherendError):
    """A node holds a value that does not parse or is out of range."""


class OtherendTimeout(OtherendError):
    """The other end did not act within a deadline."""


class OtherendGone(OtherendError):
    """The other end's directory or domain has vanished."""


class ConnectionEnded(XenbusdError):
    """The connection is ending in order. Raised inside a driver to unwind it; not an error."""


class StoreError(XenbusdError):
    """xenstored refused an operation.

    Args:
        op: the operation as Xen spells it: "READ", "WRITE", ...
        path: the operation's path, or "" if it has none.
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
    """EEXIST: to WATCH, the same path with the same token is watched already."""


class QuotaExceeded(StoreError):
    """ENOSPC, E2BIG or EDQUOT: a limit of the store has been reached."""


class TransactionConflict(StoreError):
    """EAGAIN to a commit: nodes that the transaction read have changed; it has to be repeated."""


class StoreLost(XenbusdError):
    """The connection to the store has ended."""


class HypercallError(XenbusdError):
    """A call of libxengnttab or libxenevtchn, or of its counterpart on the simulated host, failed.

    Args:
        call: the library function, as its header spells it.
        errno: the positive errno.
        about: the call's arguments in words: domain, references, port.
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
        stderr_tail: the end of its output.
    """

    def __init__(self, script: str, status: int, stderr_tail: str) -> None:
        super().__init__(f"hotplug script {script} exited with {status}: {stderr_tail or 'no output'}", status=status)
        self.script = script
        self.status = status
        self.stderr_tail = stderr_tail


class DriverError(XenbusdError):
    """A class has no driver or two, or a driver was written for another API version."""


class ResourceError(XenbusdError):
    """The resource behind a device, such as a disk image or a TPM, is not available, or not as requested.

    A driver of any class raises it. The device closes; its error node gets errno and message.

    Args:
        message: one sentence for the administrator.
        errno: a positive errno.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message, errno=errno)
        self.errno = errno


class UsageError(XenbusdError):
    """The user asked for something impossible; the message says what to do instead."""
