"""The image that `params` names, and how it may be used."""

from __future__ import annotations

import errno

import pytest

from tests.doubles import targets
from xenbusd.errors import ResourceError
from xenbusd_vbd.image.params import (
    MODES,
    QEMU,
    RAW,
    Mode,
    Params,
    check_mode,
    formats,
    has_file,
    nbd_address,
    nbdkit_words,
    parse,
    parse_mode,
)
from xenbusd_vbd.nbd.address import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("raw:/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("aio:/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("/srv/qcow2:disk.img", Params(RAW, "/srv/qcow2:disk.img")),
        ("raw:/srv/a:b,c\nd", Params(RAW, "/srv/a:b,c\nd")),
        ("loop0", Params(RAW, "/dev/loop0")),
        ("raw:mapper/vg-disk", Params(RAW, "/dev/mapper/vg-disk")),
        ("qcow2:/srv/disk", Params("qcow2", "/srv/disk")),
        ("nbd://storage:10809/disk", Params("nbd", "//storage:10809/disk")),
        ("nbd:unix:/run/export.sock", Params("nbd", "unix:/run/export.sock")),
        ("nbd+unix:///disk?socket=/run/x", Params("nbd+unix", "///disk?socket=/run/x")),
    ],
)
def test_parse(text: str, expected: Params) -> None:
    """A path is a raw image, a name a device; anything else states its format; a colon in a path is a colon in it."""
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "raw:disk.img:2", "aio:", "raw:", "QCOW2:/srv/x", "q-2:/srv/x", ":/x"])
def test_no_absolute_path(text: str) -> None:
    """Text that names no absolute path, no device and no format is refused with how to write one."""
    with pytest.raises(ResourceError, match="write an absolute path, as in raw:/srv/disk") as caught:
        parse(text)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cow:/a", "format 'cow' is not served; write raw, qcow2"),
        ("qcow2:a.qcow2", "absolute path"),
        ("qcow2:json:{}", "absolute path"),
        ("qcow2:/a\0b", "NUL"),
        ("/a\0b", "NUL"),
        ("http:host/a", "write an address"),
        ("http://host/a b", "write an address"),
        ("nbd:nowhere", "params: 'nbd:nowhere' is no NBD address"),
        ("nbdkit:", "plugin ''"),
        ("nbdkit:sh /tmp/script", "plugin 'sh'"),
        ("nbdkit:/tmp/evil.so", "plugin '/tmp/evil.so'"),
        ("nbdkit:--filter=log file /a", "--filter=log"),
        ("nbdkit:--run=reboot file /a", "plugin '--run=reboot'"),
        ("nbdkit:file /a", "KEY=VALUE"),
        ("nbdkit:file --run=reboot", "KEY=VALUE"),
    ],
)
def test_what_is_refused(text: str, sentence: str) -> None:
    """Before anything is opened, by a sentence that says what to write."""
    with pytest.raises(ResourceError) as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("text", "mode", "sentence", "code"),
    [
        ("qcow2:/a", "w!", "two writers", errno.EINVAL),
        ("xz:/a", "w", "only be read", errno.EROFS),
        ("http://host/a", "w", "only be read", errno.EROFS),
    ],
)
def test_a_mode_that_a_format_does_not_have(text: str, mode: str, sentence: str, code: int) -> None:
    """Refused before anything is opened, too."""
    params = parse(text)
    with pytest.raises(ResourceError, match=sentence) as caught:
        check_mode(params, parse_mode(mode))
    assert caught.value.errno == code
    check_mode(params, parse_mode("r"))
    check_mode(params, parse_mode("r!"))


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("r", Mode(False, False)),
        ("w", Mode(True, False)),
        ("r!", Mode(False, True)),
        ("w!", Mode(True, True)),
    ],
)
def test_modes(text: str, mode: Mode) -> None:
    """Whether it may be written to, and whether it is shared with other programs."""
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "rw", "ro", "W", "!", "w!!"])
def test_no_mode(text: str) -> None:
    """Refused with those that there are: a typing error must not open an image for writing, or share it."""
    with pytest.raises(ResourceError, match="is none of w, r, w!, r!") as caught:
        parse_mode(text)
    assert caught.value.errno == errno.EINVAL


def test_what_a_target_is_taken_apart_into() -> None:
    """A path for what is here; an address or a command's words for what is not."""
    assert parse("qcow2:/srv/disk").path == "/srv/disk"
    assert parse("loop0").path == "/dev/loop0"
    assert parse("http://host/disk").path is None
    assert nbd_address(parse("nbd:unix:/run/x")) == Address(path="/run/x")
    assert nbdkit_words(parse("nbdkit:--filter=xz  file file=/a")) == ["--filter=xz", "file", "file=/a"]
    assert str(parse("qcow2:/srv/disk")) == "qcow2:/srv/disk"


def test_every_format_has_a_place() -> None:
    """Each format is listed once, raw is not listed, and `has_file` is true of those that are files."""
    assert len(set(formats())) == len(formats())
    assert "raw" not in formats()
    assert {format for format in formats() if has_file(format)} == {*QEMU, "xz", "gz"}


@pytest.mark.parametrize("row", targets.GOOD, ids=str)
def test_the_table(row: targets.Row) -> None:
    """As hotplug/block-xenbusd understands each one, too: see tests/machine/vbd/test_targets.py."""
    params = parse(row.params.replace("FOLDER", "/srv"))
    assert params == Params(row.format, row.target.replace("FOLDER", "/srv"))
    check_mode(params, parse_mode(row.mode))


@pytest.mark.parametrize("row", targets.BAD, ids=str)
def test_what_the_table_refuses(row: targets.Row) -> None:
    """Likewise."""
    with pytest.raises(ResourceError):
        check_mode(parse(row.params.replace("FOLDER", "/srv")), parse_mode(row.mode))


def test_the_table_has_every_format() -> None:
    """So that none can be added here and forgotten in the script."""
    assert {row.format for row in targets.GOOD} == {RAW, *formats()}


def test_the_table_has_every_mode() -> None:
    """Likewise."""
    assert {row.mode for row in targets.GOOD} == set(MODES)
