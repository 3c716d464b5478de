"""Formats and the commands that serve them: what may be asked for, and that no name becomes an option."""

from __future__ import annotations

import errno

import pytest

from xenbusd.api import ResourceError
from xenbusd_vbd.image.formats import QEMU, Target, check, command, formats, has_file, look_command


@pytest.mark.parametrize("format", QEMU)
@pytest.mark.parametrize("writable", [True, False])
def test_qemu_is_told_the_format_and_the_layer_below(format: str, writable: bool) -> None:
    """Both drivers are named, so nothing is probed; a read-only disk's image is opened so."""
    target = Target(format, "/srv/d.img", writable)
    check(target)
    words = command(target, "/run/s")
    assert words[0] == "qemu-nbd"
    assert words[-2:] == ["--image-opts", f"driver={QEMU[format]},file.driver=file,file.filename=/srv/d.img"]
    assert ("--read-only" in words) is not writable
    assert look_command(target)[-1] == words[-1]


@pytest.mark.parametrize(
    "path",
    ["/srv/a,file.filename=/etc/shadow", '/srv/json:{"driver":"raw"}', "/srv/nbd:unix:x", "/srv/a b;c$(d)'\"\n"],
)
def test_a_path_is_a_path(path: str) -> None:
    """Whatever is in it: commas are doubled, and it is one word of the command."""
    options = command(Target("qcow2", path, True), "/run/s")[-1]
    assert options == "driver=qcow2,file.driver=file,file.filename=" + path.replace(",", ",,")
    assert command(Target("xz", path, False), "/run/s")[-1] == f"file={path}"


def test_a_device_below() -> None:
    """A format on a block device is opened as one."""
    target = Target("qcow2", "/dev/vg/lv", True, is_device=True)
    assert "file.driver=host_device," in command(target, "/run/s")[-1]


def test_reading_what_another_writes() -> None:
    """Only where it is asked for."""
    assert command(Target("qcow2", "/a", False, shared=True), "/run/s")[-1].endswith(",force-share=on")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("xz", "/a.xz", False), ["--filter=xz", "file", "file=/a.xz"]),
        (Target("gz", "/a.gz", False), ["--filter=gzip", "file", "file=/a.gz"]),
        (Target("https", "//host/a.img", False), ["curl", "url=https://host/a.img"]),
        (Target("nbdkit", "memory size=1M", True), ["memory", "size=1M"]),
        (
            Target("nbdkit", "--filter=xz --filter=tar file file=/a tar-entry=b", False),
            ["--filter=xz", "--filter=tar", "file", "file=/a", "tar-entry=b"],
        ),
    ],
)
def test_nbdkit(target: Target, words: list[str]) -> None:
    """Its plugins and filters; --readonly where the disk is."""
    check(target)
    readonly = [] if target.writable else ["--readonly"]
    assert command(target, "/run/s") == ["nbdkit", "--foreground", "--unix", "/run/s", *readonly, *words]


@pytest.mark.parametrize(
    ("target", "sentence", "code"),
    [
        (Target("cow", "/a", True), "format 'cow' is not served; write raw, qcow2", errno.EINVAL),
        (Target("qcow2", "a.qcow2", True), "absolute path", errno.EINVAL),
        (Target("qcow2", "json:{}", True), "absolute path", errno.EINVAL),
        (Target("qcow2", "/a\0b", True), "NUL", errno.EINVAL),
        (Target("qcow2", "/a", True, shared=True), "two writers", errno.EINVAL),
        (Target("qcow2", "/a", True, cache="unsafe"), "image_cache", errno.EINVAL),
        (Target("xz", "/a", True), "only be read", errno.EROFS),
        (Target("http", "//host/a", True), "only be read", errno.EROFS),
        (Target("http", "host/a", False), "write an address", errno.EINVAL),
        (Target("http", "//host/a b", False), "write an address", errno.EINVAL),
        (Target("nbdkit", "", False), "plugin ''", errno.EINVAL),
        (Target("nbdkit", "sh /tmp/script", False), "plugin 'sh'", errno.EINVAL),
        (Target("nbdkit", "/tmp/evil.so", False), "plugin '/tmp/evil.so'", errno.EINVAL),
        (Target("nbdkit", "--filter=log file /a", False), "--filter=log", errno.EINVAL),
        (Target("nbdkit", "--run=reboot file /a", False), "plugin '--run=reboot'", errno.EINVAL),
        (Target("nbdkit", "file /a", False), "KEY=VALUE", errno.EINVAL),
        (Target("nbdkit", "file --run=reboot", False), "KEY=VALUE", errno.EINVAL),
    ],
)
def test_what_is_refused(target: Target, sentence: str, code: int) -> None:
    """Before anything is opened, by a sentence that says what to write."""
    with pytest.raises(ResourceError) as caught:
        check(target)
    assert sentence in str(caught.value)
    assert caught.value.errno == code


def test_every_format_has_a_place() -> None:
    """No name stands for two things; raw is not ours."""
    assert len(set(formats())) == len(formats())
    assert "raw" not in formats()
    assert {format for format in formats() if has_file(format)} == {*QEMU, "xz", "gz"}
