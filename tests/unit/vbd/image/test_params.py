"""What `params` names."""

from __future__ import annotations

import errno

import pytest

from xenbusd.errors import ResourceError
from xenbusd_vbd.image.params import RAW, Params, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("raw:/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("aio:/srv/disk.img", Params(RAW, "/srv/disk.img")),
        ("/srv/qcow2:disk.img", Params(RAW, "/srv/qcow2:disk.img")),
        ("raw:/srv/a:b,c\nd", Params(RAW, "/srv/a:b,c\nd")),
        ("qcow2:/srv/disk", Params("qcow2", "/srv/disk")),
        ("nbd://storage:10809/disk", Params("nbd", "//storage:10809/disk")),
        ("nbd:unix:/run/export.sock", Params("nbd", "unix:/run/export.sock")),
        ("nbd+unix:///disk?socket=/run/x", Params("nbd+unix", "///disk?socket=/run/x")),
        ("nosuch:/srv/disk", Params("nosuch", "/srv/disk")),
    ],
)
def test_parse(text: str, expected: Params) -> None:
    """A path is a raw image; anything else states its format; a colon in a path is a colon in a path."""
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "disk.img", "raw:disk.img", "aio:", "raw:", "QCOW2:/srv/x", "q-2:/srv/x", ":/x"])
def test_no_absolute_path(text: str) -> None:
    """What names no absolute path and states no format is refused with how to write it."""
    with pytest.raises(ResourceError, match="write an absolute path, as in raw:/srv/disk") as caught:
        parse(text)
    assert caught.value.errno == errno.EINVAL
