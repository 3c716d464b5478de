"""The values that `params` may have: one table for the daemon's parser, for `xenbusctl attach`, and for
hotplug/block-xenbusd.

In `params` and `path`, FOLDER stands for a folder that has `disk.img` in it, and NAME for a name that is that file's
below /dev.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One `params` value, with the mode that it is attached with."""

    params: str
    mode: str
    format: str
    """As the daemon understands it; "" if it is to be refused."""
    target: str = ""
    """Likewise: `Params.target`."""

    def __str__(self) -> str:
        return f"{self.params} mode={self.mode}"


GOOD = (
    Row("FOLDER/disk.img", "w", "raw", "FOLDER/disk.img"),
    Row("FOLDER/disk.img", "r", "raw", "FOLDER/disk.img"),
    Row("FOLDER/disk.img", "w!", "raw", "FOLDER/disk.img"),
    Row("FOLDER/disk.img", "r!", "raw", "FOLDER/disk.img"),
    Row("FOLDER/qcow2:a b,c?socket=/x \\n.img", "w", "raw", "FOLDER/qcow2:a b,c?socket=/x \\n.img"),
    Row("raw:FOLDER/disk.img", "w", "raw", "FOLDER/disk.img"),
    Row("raw:FOLDER/http://a", "w", "raw", "FOLDER/http://a"),
    Row("aio:FOLDER/disk.img", "w", "raw", "FOLDER/disk.img"),
    Row("NAME", "w", "raw", "/dev/NAME"),
    Row("NAME", "w!", "raw", "/dev/NAME"),
    Row("raw:NAME", "r", "raw", "/dev/NAME"),
    Row("aio:NAME", "r!", "raw", "/dev/NAME"),
    *(
        Row(f"{format}:FOLDER/disk.img", "w", format, "FOLDER/disk.img")
        for format in ("qcow2", "qcow", "qed", "vhd", "vpc", "vhdx", "vmdk", "vdi")
    ),
    Row("qcow2:FOLDER/raw:a:b", "r!", "qcow2", "FOLDER/raw:a:b"),
    Row("xz:FOLDER/disk.img", "r", "xz", "FOLDER/disk.img"),
    Row("gz:FOLDER/disk.img", "r!", "gz", "FOLDER/disk.img"),
    Row("http://host/disk.img", "r", "http", "//host/disk.img"),
    Row("http://host:8080/a/b.img?c=d:e", "r", "http", "//host:8080/a/b.img?c=d:e"),
    Row("https://host/disk.img", "r", "https", "//host/disk.img"),
    Row("nbd://host", "w", "nbd", "//host"),
    Row("nbd://host:10810/export", "w!", "nbd", "//host:10810/export"),
    Row("nbd://[::1]/export", "r", "nbd", "//[::1]/export"),
    Row("nbd://host:", "r", "nbd", "//host:"),
    Row("nbd://host:65535/a:b@c", "r", "nbd", "//host:65535/a:b@c"),
    Row("nbd://[::1]:10810/export", "r!", "nbd", "//[::1]:10810/export"),
    Row("nbd:unix:/run/nbd.sock", "w", "nbd", "unix:/run/nbd.sock"),
    Row("nbd:unix:/run/nbd.sock:exportname=a b", "w", "nbd", "unix:/run/nbd.sock:exportname=a b"),
    Row("nbd+unix:///?socket=/run/nbd.sock", "w", "nbd+unix", "///?socket=/run/nbd.sock"),
    Row("nbd+unix:///a/b?socket=%2Frun%2Fnbd", "w", "nbd+unix", "///a/b?socket=%2Frun%2Fnbd"),
    Row("nbd:unix:/" + "a" * 106, "w", "nbd", "unix:/" + "a" * 106),
    Row("nbd+unix:///?socket=%2f" + "%61" * 106, "w", "nbd+unix", "///?socket=%2f" + "%61" * 106),
    Row("nbd+unix:unix:/run/nbd.sock", "w", "nbd+unix", "unix:/run/nbd.sock"),
    Row("nbdkit:memory size=1M", "w", "nbdkit", "memory size=1M"),
    Row("nbdkit:--filter=xz file file=/a", "r", "nbdkit", "--filter=xz file file=/a"),
    Row(
        "nbdkit:--filter=tar  --filter=xz curl url=http://a/*",
        "r",
        "nbdkit",
        "--filter=tar  --filter=xz curl url=http://a/*",
    ),
)

BAD = (
    Row("", "w", ""),
    Row("raw:", "w", ""),
    Row("aio:", "w", ""),
    Row("raw:qcow2:/srv/disk", "w", ""),
    Row("raw:a:b", "w", ""),
    Row(":FOLDER/disk.img", "w", ""),
    Row("a:b", "w", ""),
    Row("disk/by-path/pci-0000:00", "w", ""),
    Row("QCOW2:FOLDER/disk.img", "w", ""),
    Row("q-2:FOLDER/disk.img", "w", ""),
    Row("bochs:FOLDER/disk.img", "w", ""),
    Row("qcow2:", "w", ""),
    Row("qcow2:disk.qcow2", "w", ""),
    Row("qcow2:json:{}", "w", ""),
    Row("qcow2:FOLDER/disk.img", "w!", ""),
    Row("xz:disk.xz", "r", ""),
    Row("xz:FOLDER/disk.img", "w", ""),
    Row("gz:FOLDER/disk.img", "w!", ""),
    Row("http://host/disk.img", "w", ""),
    Row("https://host/disk.img", "w!", ""),
    Row("http:", "r", ""),
    Row("http://host", "r", ""),
    Row("http://host/", "r", ""),
    Row("http:///disk.img", "r", ""),
    Row("http:/host/disk.img", "r", ""),
    Row("http:host/disk.img", "r", ""),
    Row("https://host/a disk.img", "r", ""),
    Row("https://host/a\ndisk.img", "r", ""),
    Row("nbd:", "w", ""),
    Row("nbd:host:10809", "w", ""),
    Row("nbd:unix:", "w", ""),
    Row("nbd:unix:nbd.sock", "w", ""),
    Row("nbd:///export", "w", ""),
    Row("nbd:///export?socket=/run/nbd.sock", "w", ""),
    Row("nbd+unix:///export", "w", ""),
    Row("nbd+unix://host/export?socket=/run/nbd.sock", "w", ""),
    Row("nbd+unix:unix:relative", "w", ""),
    Row("nbdkit:", "w", ""),
    Row("nbd://host:70000", "w", ""),
    Row("nbd://user@host", "w", ""),
    Row("nbd:unix:/" + "a" * 107, "w", ""),
    Row("nbd+unix:///export?socket=relative", "w", ""),
    Row("nbdkit:sh /tmp/script", "w", ""),
    Row("nbdkit:file /tmp/a", "w", ""),
    Row("nbdkit:file File=/tmp/a", "w", ""),
    Row("nbdkit:file =/tmp/a", "w", ""),
    Row("nbdkit:file --run=reboot", "w", ""),
    Row("nbdkit:/tmp/evil.so", "w", ""),
    Row("nbdkit:cache file=/a", "w", ""),
    Row("nbdkit:--filter=log file file=/a", "w", ""),
    Row("nbdkit:--filter=xz", "w", ""),
    Row("nbdkit:* size=1M", "w", ""),
    Row("nbd://host:x", "w", ""),
    Row("nbd://host:1:2", "w", ""),
    Row("nbd://:10809/export", "w", ""),
    Row("nbd://user:secret@host", "w", ""),
    Row("nbd://[::1/export", "w", ""),
    Row("nbd://host/export#part", "w", ""),
    Row("nbd://host/export?tls=1", "w", ""),
    Row("nbd+unix:///?socket=/run/a&socket=/run/b", "w", ""),
    Row("nbd+unix:///?socket=/run/a%00", "w", ""),
    Row("nbd+unix:///?socket=/" + "%61" * 107, "w", ""),
    Row("FOLDER/disk.img", "", ""),
    Row("FOLDER/disk.img", "rw", ""),
    Row("FOLDER/disk.img", "w!!", ""),
    Row("nbd://host", "ro", ""),
)
