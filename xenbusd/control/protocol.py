"""The language of the control socket: requests and replies, and their form on the wire. Pure.

A request is a JSON object on one line, and so is each reply:

    {"command": "show", "device": "vbd/3/51712"}
    {"ok": {"device": "vbd/3/51712", "side": "backend", ...}}
    {"error": "this daemon has no device vbd/3/51712"}

`follow` is answered by many lines: first {"ok": {"following": ...}}, then an `Event` for each thing that happens, until
one side closes the connection. Every other request has one reply, and a connection may carry any number of them.

Versions. A request may have a key "version"; without it, it is of version 1. Both sides ignore keys that they do not
know, so that keys can be added within a version; a version is raised when a key is removed or changes its meaning.

Decision: D50.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from xenbusd.bus.finding import Finding
from xenbusd.control.records import ControlError, Record, flat, optional

VERSION = 1

REQUEST_BYTES_MAX = 65536
"""Bytes of a request; a reply may have any length."""


@dataclass(frozen=True)
class ListRequest(Record):
    """Which daemon is this, and which devices does it have? Answered by `DaemonStatus`."""

    command: ClassVar[str] = "list"


@dataclass(frozen=True)
class ShowRequest(Record):
    """All that is known of one device that is there now. Answered by `DeviceDetails`."""

    command: ClassVar[str] = "show"
    device: str


@dataclass(frozen=True)
class TimelineRequest(Record):
    """The events of one device, which may have gone. Answered by `DeviceTimeline`."""

    command: ClassVar[str] = "timeline"
    device: str


@dataclass(frozen=True)
class FollowRequest(Record):
    """From now on, every event of a device, or of all devices if `device` is None. The device need not be there yet.

    Answered by `Following`, then by one `Event` after another.
    """

    command: ClassVar[str] = "follow"
    device: str | None = None


Request = ListRequest | ShowRequest | TimelineRequest | FollowRequest
_REQUESTS: tuple[type[Request], ...] = (ListRequest, ShowRequest, TimelineRequest, FollowRequest)


@dataclass(frozen=True, kw_only=True)
class DeviceSummary(Record):
    """One end of a device, in short.

    `state` and `otherend_state` are titles as in Xen's headers ("InitWait"); `waiting_for` says in words what has not
    happened yet, and is empty if nothing is waited for. `counters` stand beside the other keys on the wire, by name.
    """

    device: str
    side: str
    state: str
    otherend_state: str
    waiting_for: str
    counters: Mapping[str, int] = flat()


@dataclass(frozen=True)
class FindingRecord(Record):
    """One `xenbusd.bus.finding.Finding`."""

    who: str
    what: str
    todo: str

    @property
    def finding(self) -> Finding:
        """The finding itself."""
        return Finding(self.who, self.what, self.todo)


@dataclass(frozen=True, kw_only=True)
class DeviceDetails(DeviceSummary):
    """The same with both directories in the store, and the state of the rings while the device is connected.

    `histograms` has the driver's, by name, if it declares any: `bounds`, `counts` (one more than bounds) and `total`.
    `findings` are the driver's reasons why the device is not in use as it should be, if it knows any.
    """

    path: str
    otherend_path: str
    ring: Mapping[str, Any]
    histograms: Mapping[str, Any] | None = optional()
    findings: tuple[FindingRecord, ...] | None = optional()


@dataclass(frozen=True)
class DaemonStatus(Record):
    """A daemon and its devices, in order of appearance. `uptime_s` is in seconds, to the millisecond.

    `store_reconnects` counts connections to the store after the first, `store_strays` its answers and events that
    nothing had asked for; both are left out while they are 0.
    """

    side: str
    domid: int
    host: str
    pid: int
    uptime_s: float
    store_connected: bool
    devices: tuple[DeviceSummary, ...] = ()
    store_reconnects: int | None = optional()
    store_strays: int | None = optional()


@dataclass(frozen=True)
class TimelineEntry(Record):
    """One event: `at` is seconds of the monotonic clock, `actor` is "hotplug", "backend" or "frontend"."""

    at: float
    actor: str
    event: str


@dataclass(frozen=True)
class DeviceTimeline(Record):
    """The events of one device, oldest first; `started` is in seconds since the epoch."""

    device: str
    started: float
    entries: tuple[TimelineEntry, ...]


@dataclass(frozen=True)
class Following(Record):
    """The first reply to `follow`: each event after this one will be reported."""

    following: str | None


@dataclass(frozen=True)
class Event(Record):
    """One event of a device that is followed; otherwise as `TimelineEntry`."""

    device: str
    at: float
    actor: str
    event: str


@dataclass(frozen=True)
class Refusal:
    """A request could not be answered; a sentence says why."""

    error: str


Reply = DaemonStatus | DeviceDetails | DeviceTimeline | Following | Event | Refusal
A = TypeVar("A", bound=Record)


def encode_request(request: Request) -> bytes:
    """Return a request's line, its end included."""
    return _line({"command": request.command, "version": VERSION, **request.to_json()})


def decode_request(line: bytes) -> Request:
    """Read a request.

    Raises:
        ControlError: the line is no request; the message is meant for its sender.
    """
    known = _object(line)
    if known is None:
        raise ControlError("a request is a JSON object on one line")
    version, command, device = known.get("version", VERSION), known.get("command"), known.get("device")
    if version != VERSION:
        raise ControlError(f"this daemon speaks version {VERSION} of the control protocol, not {version!r}")
    for kind in _REQUESTS:
        if kind.command == command:
            try:
                return kind.from_json(known)
            except ControlError:
                raise ControlError(f"{command}: device must be a name such as vbd/3/51712, not {device!r}") from None
    commands = [kind.command for kind in _REQUESTS]
    raise ControlError(f"no command {command!r}; there are {', '.join(commands[:-1])} and {commands[-1]}")


def encode_reply(reply: Reply) -> bytes:
    """Return a reply's line, its end included."""
    return _line({"error": reply.error} if isinstance(reply, Refusal) else {"ok": reply.to_json()})


def decode_reply(line: bytes, kind: type[A]) -> A:
    """Read a reply.

    Args:
        line: one line; empty at the end of the connection.
        kind: the class that answers the request.

    Raises:
        ControlError: the request was refused, the connection has ended, or the line is no such reply.
    """
    if not line:
        raise ControlError("the daemon hung up")
    known = _object(line)
    if known is None or not {"ok", "error"} & known.keys():
        raise ControlError(f"the daemon's reply is not of the control protocol: {line[:80]!r}")
    if "error" in known:
        raise ControlError(str(known["error"]))
    return kind.from_json(known["ok"])


def _line(known: Mapping[str, Any]) -> bytes:
    return json.dumps(known).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        known = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None
