"""The commands that serve formats: no name becomes an option, and no format is guessed."""

from __future__ import annotations

import pytest

from xenbusd_vbd.image.formats import Target, command, inspect_command
from xenbusd_vbd.image.params import QEMU


@pytest.mark.parametrize("format", QEMU)
@pytest.mark.parametrize("writable", [True, False])
def test_qemu_is_told_the_format_and_the_layer_below(format: str, writable: bool) -> None:
    """Both drivers are named, so nothing is probed; a read-only disk's image is opened so."""
    target = Target(format, "/srv/d.img", writable)
    words = command(target, "/run/s")
    assert words[0] == "qemu-nbd"
    assert words[-2:] == ["--image-opts", f"driver={QEMU[format]},file.driver=file,file.filename=/srv/d.img"]
    assert ("--read-only" in words) is not writable
    assert inspect_command(target)[-1] == words[-1]


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
    readonly = [] if target.writable else ["--readonly"]
    assert command(target, "/run/s") == ["nbdkit", "--foreground", "--unix", "/run/s", *readonly, *words]
