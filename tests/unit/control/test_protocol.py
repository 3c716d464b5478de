"""xenbusd.control.protocol: each request and reply as a line, and lines that are refused."""

from __future__ import annotations

import json

import pytest

from tests.doubles.control_daemon import STATUS
from xenbusd.control.protocol import (
    VERSION,
    DaemonStatus,
    DeviceDetails,
    DeviceSummary,
    DeviceTimeline,
    Event,
    Following,
    FollowRequest,
    ListRequest,
    Refusal,
    Reply,
    Request,
    ShowRequest,
    TimelineEntry,
    TimelineRequest,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from xenbusd.control.records import ControlError

SUMMARY = DeviceSummary(
    device="vbd/3/51712",
    side="backend",
    state="InitWait",
    otherend_state="Initialising",
    waiting_for="the frontend",
    counters={"requests": 7, "bytes": 0},
)

REQUESTS = [
    ListRequest(),
    ShowRequest("vbd/3/51712"),
    TimelineRequest("vbd/3/51712"),
    FollowRequest("vbd/3/51712"),
    FollowRequest(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_a_request_there_and_back(request_: Request) -> None:
    """One line each."""
    line = encode_request(request_)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_request(line) == request_


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"command": "list", "device": null}', ListRequest()),
        (b'{"command": "show", "device": "vbd/3/51712"}', ShowRequest("vbd/3/51712")),
        (b'{"command": "timeline", "device": "vbd/3/51712", "since": 7}', TimelineRequest("vbd/3/51712")),
        (b'{"command": "follow"}', FollowRequest()),
    ],
)
def test_a_request_without_a_version_is_of_version_1(line: bytes, request_: Request) -> None:
    """As those that the first daemons understood; keys that mean nothing yet are ignored."""
    assert VERSION == 1
    assert decode_request(line) == request_


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(version: object) -> None:
    """With the one that is spoken here."""
    line = json.dumps({"command": "list", "version": version}).encode()
    with pytest.raises(ControlError) as caught:
        decode_request(line)
    assert str(caught.value) == f"this daemon speaks version 1 of the control protocol, not {version!r}"


@pytest.mark.parametrize("command", ["stop", None, 7, ["list"], {}])
def test_an_unknown_command_gets_the_list_of_commands(command: object) -> None:
    """Whatever kind of thing it is."""
    with pytest.raises(ControlError) as caught:
        decode_request(json.dumps({"command": command}).encode())
    assert str(caught.value) == f"no command {command!r}; there are list, show, timeline and follow"


@pytest.mark.parametrize("name", [None, 7, ["vbd/3/1"], {"a": 1}])
@pytest.mark.parametrize("command", ["show", "timeline", "follow"])
def test_a_device_is_named_by_text(command: str, name: object) -> None:
    """Only `follow` can do without, and then means all devices."""
    line = json.dumps({"command": command, "device": name}).encode()
    if (command, name) == ("follow", None):
        assert decode_request(line) == FollowRequest()
        return
    with pytest.raises(ControlError, match=f"{command}: device must be a name such as vbd/3/51712, not"):
        decode_request(line)


@pytest.mark.parametrize(
    "line",
    [b"", b"list", b"{", b"[1]", b"7", b"null", b'"list"', b"\xff\xfe", b"\0", b'{"command": "list"', b"[" * 50000],
    ids=lambda line: repr(line[:20]),
)
def test_a_garbage_line_is_no_request(line: bytes) -> None:
    """It gets a sentence, no traceback."""
    with pytest.raises(ControlError, match=r"^a request is a JSON object on one line$"):
        decode_request(line)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (
            DaemonStatus(
                side="backend",
                domid=0,
                host="xen",
                pid=7,
                uptime_s=1.5,
                store_connected=True,
                devices=(SUMMARY,),
            ),
            '{"ok": {"side": "backend", "domid": 0, "host": "xen", "pid": 7, "uptime_s": 1.5, "store_connected": true, '
            '"devices": [{"device": "vbd/3/51712", "side": "backend", "state": "InitWait", "otherend_state": '
            '"Initialising", "waiting_for": "the frontend", "requests": 7, "bytes": 0}]}}',
        ),
        (
            DeviceDetails(**vars(SUMMARY), path="/a", otherend_path="/b", ring={"port": 9}),
            '{"ok": {"device": "vbd/3/51712", "side": "backend", "state": "InitWait", "otherend_state": '
            '"Initialising", "waiting_for": "the frontend", "requests": 7, "bytes": 0, "path": "/a", '
            '"otherend_path": "/b", "ring": {"port": 9}}}',
        ),
        (
            DeviceTimeline("vbd/3/51712", 1700000000.5, (TimelineEntry(1.25, "backend", "InitWait"),)),
            '{"ok": {"device": "vbd/3/51712", "started": 1700000000.5, '
            '"entries": [{"at": 1.25, "actor": "backend", "event": "InitWait"}]}}',
        ),
        (Following(None), '{"ok": {"following": null}}'),
        (
            Event("vbd/3/51712", 1.25, "backend", "InitWait"),
            '{"ok": {"device": "vbd/3/51712", "at": 1.25, "actor": "backend", "event": "InitWait"}}',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_replies_to_the_letter(reply: Reply, line: str) -> None:
    """Programs read these lines: keys, their order and their spelling stay."""
    assert encode_reply(reply) == line.encode() + b"\n"
    assert not isinstance(reply, Refusal)
    assert decode_reply(line.encode(), type(reply)) == reply


def test_a_refusal_is_raised_where_it_arrives() -> None:
    """With the daemon's sentence."""
    line = encode_reply(Refusal("this daemon has no device vbd/3/1"))
    assert line == b'{"error": "this daemon has no device vbd/3/1"}\n'
    with pytest.raises(ControlError, match=r"^this daemon has no device vbd/3/1$"):
        decode_reply(line, DaemonStatus)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "the daemon hung up"),
        (b"HTTP/1.0 400 Bad Request\r\n", "the daemon's reply is not of the control protocol: b'HTTP"),
        (b"{}", "the daemon's reply is not of the control protocol"),
        (b'{"ok": 7}', "a DaemonStatus is a JSON object, not 7"),
        (b'{"ok": {"side": "backend"}}', r"DaemonStatus\.domid must be of type int"),
    ],
)
def test_what_is_no_reply(line: bytes, complaint: str) -> None:
    """A sentence that says so."""
    with pytest.raises(ControlError, match=complaint):
        decode_reply(line, DaemonStatus)


def test_nothing_of_a_message_can_be_changed() -> None:
    """Messages are values."""
    with pytest.raises(AttributeError):
        STATUS.pid = 8  # type: ignore[misc]
