"""xenbusd.log: formats, harmless values, the rate limit. Every test reads what was written to stderr."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from xenbusd import log
from xenbusd.errors import UsageError


class Colour(IntEnum):
    """An enumeration whose str() would be a bare number."""

    RED = 1


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave the log as the other tests have it."""
    yield
    log.setup("console", "debug")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What has been logged since the last call."""
    out, err = capsys.readouterr()
    assert out == "", "the log belongs on stderr"
    return err.splitlines()


def test_journal_lines_carry_a_priority(capsys: pytest.CaptureFixture[str]) -> None:
    """journal: `<n>` of syslog, the event, then key=value, quoted where needed."""
    log.setup("journal", "debug")
    logger = log.get(device="vbd-3-51712")
    logger.debug("ring.drained", requests=3)
    logger.info("device.connected", mode="w")
    logger.warning("otherend.fault", reason="two words")
    logger.error("hotplug.failed", status=-9, output="")
    assert lines(capsys) == [
        "<7>ring.drained device=vbd-3-51712 requests=3",
        "<6>device.connected device=vbd-3-51712 mode=w",
        '<4>otherend.fault device=vbd-3-51712 reason="two words"',
        '<3>hotplug.failed device=vbd-3-51712 status=-9 output=""',
    ]


def test_journal_traceback_keeps_its_priority(capsys: pytest.CaptureFixture[str]) -> None:
    """journal: each line of a traceback is a line of the same priority, so that none is filed as information."""
    log.setup("journal")
    try:
        raise ValueError("guest said: \x1b[2J\nand more")
    except ValueError:
        log.get().exception("device.failed")
    written = lines(capsys)
    assert written[0] == "<3>device.failed"
    assert len(written) > 3
    assert all(line.startswith("<3>") for line in written)
    assert "\x1b" not in "".join(written)
    assert any("ValueError: guest said: \\x1b[2J" in line for line in written)


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    """json: event, level, timestamp and the values with their types."""
    log.setup("json")
    log.get(device="vbd-3-51712").info("device.closed", requests=7, reason="a\nb", who=["x", 1])
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "device.closed",
        "level": "info",
        "device": "vbd-3-51712",
        "requests": 7,
        "reason": "a\\nb",
        "who": ["x", 1],
    }


def test_console_off_a_terminal_has_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """console: in a file or a pipe no escape sequence is written."""
    log.setup("console")
    log.get(device="echo-1-0").warning("otherend.fault")
    (line,) = lines(capsys)
    assert "otherend.fault" in line
    assert "device=echo-1-0" in line
    assert "\x1b" not in line


def test_level_is_a_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines below the level are not written."""
    log.setup("journal", "warning")
    log.get().info("state.switched")
    log.get().warning("store.lost")
    assert lines(capsys) == ["<4>store.lost"]


@pytest.mark.parametrize(("format", "level"), [("xml", "info"), ("json", "loud")])
def test_unknown_format_or_level(format: str, level: str) -> None:
    """A format or level that does not exist is refused with the ones that do."""
    with pytest.raises(UsageError, match="is none of"):
        log.setup(format, level)


@pytest.mark.parametrize("stream_matches", [True, False])
def test_auto_is_journal_only_on_journalds_stream(tmp_path: Path, stream_matches: bool) -> None:
    """auto: the journal format if JOURNAL_STREAM names stderr itself, not if stderr was redirected."""
    target = tmp_path / "err"
    with target.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        inode = status.st_ino + (0 if stream_matches else 1)
        subprocess.run(
            [sys.executable, "-c", "from xenbusd import log; log.setup(); log.get().info('device.appeared')"],
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"},
            cwd=Path(__file__).parents[2],
            stderr=stderr,
            check=True,
        )
    text = target.read_text()
    assert (text == "<6>device.appeared\n") is stream_matches
    assert "device.appeared" in text


def test_importing_is_cheap() -> None:
    """Importing the module does not import structlog, which takes a tenth of a second."""
    code = "import sys, xenbusd.log; sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("café", "café"),
        ("a\nb\0c\x1b[31m", "a\\nb\\x00c\\x1b[31m"),
        ("\u202eevil", "\\u202eevil"),
        (b"\xff\n", "\\xff\\n"),
        ("\udcff", "\\udcff"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "x" * 128 + "…"),
        (b"y" * 4096, "y" * 128 + "…"),
        ("é" * 100, "é" * 64 + "…"),
        ("\n" * 100, "\\n" * 64 + "…"),
    ],
)
def test_escape_makes_text_harmless(text: str | bytes, shown: str) -> None:
    """Control and direction characters are escaped, and at most 128 bytes are left."""
    assert log.escape(text) == shown


def test_every_kind_of_value_is_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    """Strings in lists, mappings and objects are cut and escaped like any other; enumerations show their name."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.setup("json")
    log.get().info(
        "x", a=["\n" * 9, b"\0"], b={"k\n": "\r"}, c=Odd(), d=Colour.RED, e=ValueError("\t"), f=range(3), g=True
    )
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record["a"] == ["\\n" * 9, "\\x00"]
    assert record["b"] == {"k\\n": "\\r"}
    assert record["c"] == "<Odd that cannot be shown: RuntimeError>"
    assert record["d"] == "RED"
    assert record["e"] == "\\t"
    assert record["f"] == "range(0, 3)"
    assert record["g"] is True


def test_a_huge_list_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A list shows its first 32 items, however long it is."""
    log.setup("json")
    log.get().info("x", grefs=list(range(1000)))
    assert json.loads(lines(capsys)[0])["grefs"] == list(range(32))


@pytest.mark.parametrize("format", ["journal", "json", "console"])
def test_a_guest_cannot_forge_a_line(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in a value never begins a new line, in any format."""
    log.setup(format)
    log.get().warning("otherend.fault", value="x\n<0>fake.event device=vbd-1-1")
    assert len(lines(capsys)) == 1


def test_a_closed_stderr_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A log that cannot be written is no reason to stop serving."""
    log.setup("journal")
    with (tmp_path / "err").open("w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    log.get().info("device.appeared")
    monkeypatch.setattr(sys, "stderr", None)
    log.get().info("device.appeared")


def test_asyncios_own_complaints_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """What asyncio says through the standard library's logging comes out in our format."""
    log.setup("journal")
    logging.getLogger("asyncio").error("lost\ntask")
    assert lines(capsys) == ["<3>library.logged library=asyncio error=lost\\ntask"]


def test_libraries_below_warning_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's information lines do not fill the log."""
    log.setup("journal", "debug")
    logging.getLogger("somebody").info("hello")
    logging.getLogger("somebody").warning("careful")
    assert lines(capsys) == ["<4>library.logged library=somebody error=careful"]


class Clock:
    """A clock that a test turns by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_bucket_admits_a_burst_then_drops() -> None:
    """Ten at once, then none until a tenth of the period has passed; the number of dropped lines is reported once."""
    clock = Clock()
    limit = log.RateLimit(10, 60.0, clock=clock)
    assert [limit.admit("k") for _ in range(13)] == [0] * 10 + [None] * 3
    clock.now += 6.0
    assert limit.admit("k") == 3
    assert limit.admit("k") is None
    clock.now += 6000.0
    assert limit.admit("k") == 1
    assert [limit.admit("k") for _ in range(10)] == [0] * 9 + [None]


def test_keys_do_not_share_a_bucket() -> None:
    """A noisy device does not silence another."""
    limit = log.RateLimit(1, clock=Clock())
    assert limit.admit(("vbd-1-0", "x")) == 0
    assert limit.admit(("vbd-1-0", "x")) is None
    assert limit.admit(("vbd-2-0", "x")) == 0


def test_memory_of_the_limit_is_bounded() -> None:
    """Any number of keys keeps at most keys_max of them: the oldest goes, and starts afresh."""
    limit = log.RateLimit(1, keys_max=2, clock=Clock())
    for key in ("a", "b", "c"):
        assert limit.admit(key) == 0
    assert limit.admit("c") is None
    assert limit.admit("a") == 0


def test_warnings_about_a_peer_are_limited(capsys: pytest.CaptureFixture[str]) -> None:
    """XSA-180: a hostile peer gets ten lines a minute, and its device's last line says how many were dropped."""
    log.setup("journal")
    bad, good = log.get(device="vbd-1-51712"), log.get(device="vbd-2-51712")
    for n in range(1000):
        bad.warning("otherend.fault", n=n)
    good.warning("otherend.fault", n=0)
    bad.error("hotplug.failed")
    bad.info("device.closed", reason="fault", by_otherend=True)
    written = lines(capsys)
    assert written[:10] == [f"<4>otherend.fault device=vbd-1-51712 n={n}" for n in range(10)]
    assert written[10:] == [
        "<4>otherend.fault device=vbd-2-51712 n=0",
        "<3>hotplug.failed device=vbd-1-51712",
        "<6>device.closed device=vbd-1-51712 reason=fault suppressed=990",
    ]


def test_closing_and_beginning_again_does_not_refill_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """XSA-180: a frontend that toggles its state gets ten lines of each kind, however often its device closes."""
    log.setup("journal")
    toggled = log.get(device="vbd-1-51712")
    for _ in range(500):
        toggled.info("device.connected", by_otherend=True)
        toggled.warning("otherend.fault")
        toggled.info("device.closed", by_otherend=True)
    written = lines(capsys)
    assert len(written) == 30
    assert sum("otherend.fault" in line for line in written) == 10


def test_our_own_warnings_are_not_limited(capsys: pytest.CaptureFixture[str]) -> None:
    """Only what a peer can provoke is limited: its writer says so, whatever the event is called."""
    log.setup("journal")
    for _ in range(50):
        log.get().warning("store.lost")
        log.get(device="vbd-1-51712").info("device.connected")
    assert len(lines(capsys)) == 100


def test_the_mark_of_a_limited_line_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Any driver may set it, on any event; it is for the limit alone."""
    log.setup("journal")
    for _ in range(11):
        log.get(device="toy-1-0").info("toy.asked", n=1, by_otherend=True)
    log.get(device="toy-1-0").info("toy.told", by_otherend=False)
    assert lines(capsys) == ["<6>toy.asked device=toy-1-0 n=1"] * 10 + ["<6>toy.told device=toy-1-0"]
