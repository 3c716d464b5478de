"""What a toolstack says of a disk: its number, and the keys that describe it, as libxl writes them. Pure.

Source: tools/libs/light/libxl_disk.c (libxl__device_disk_dev_number, device_disk_add), docs/man/xen-vbd-interface.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from xenbusd.api import Devid, Directories, UsageError

_NAME = re.compile(r"(xvd|sd|hd)([a-z]{1,3})([0-9]{1,3})?", re.ASCII)

PARAMETERS = {
    "target": "absolute path of a raw file or block device; required",
    "mode": "w, r, or w! to share it unchecked  [w]",
    "script": "hotplug script, a name or an absolute path; empty for none  [block-xenbusd]",
    "device-type": "disk or cdrom  [disk]",
    "removable": "0 or 1  [0]",
    "discard-enable": "0 or 1  [1]",
}


def parse_vdev(text: str) -> int:
    """Turn xvda, sdb2, hdc or a decimal number into a vbd's number.

    Raises:
        UsageError
    """
    if text.isdecimal() and text.isascii() and int(text) <= 0xFFFFFFFF:
        return int(text)
    found = _NAME.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no disk name or number: write xvda, xvdb1, sda, hda or 51712")
    kind, letters, digits = found.groups()
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    partition = int(digits or 0)
    if kind == "xvd":
        if disk < 16 and partition < 16:
            return 202 << 8 | disk << 4 | partition
        if disk < 1 << 20 and partition < 256:
            return 1 << 28 | disk << 8 | partition
    if kind == "sd" and disk < 16 and partition < 16:
        return 8 << 8 | disk << 4 | partition
    if kind == "hd" and disk < 4 and partition < 64:
        return (3, 22)[disk // 2] << 8 | (disk % 2) << 6 | partition
    raise UsageError(f"{text!r} is beyond what {kind} disks can be numbered to; use an xvd name")


def vdev_name(number: int) -> str:
    """The name that `dev` holds; the number itself where there is none."""
    if number >> 8 == 202:
        return f"xvd{chr(ord('a') + (number >> 4 & 15))}{number & 15 or ''}"
    return str(number)


def directories(devid: Devid, parameters: Mapping[str, str]) -> Directories:
    """The keys for both directories.

    Raises:
        UsageError: a parameter is unknown, missing or wrong.
    """
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise UsageError(f"vbd: unknown parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    target = parameters.get("target", "")
    if not target.removeprefix("raw:").startswith("/"):
        raise UsageError("vbd: say what to serve by its absolute path: target=/path/to/disk.img")
    mode = _one_of(parameters, "mode", "w", "r", "w!")
    device_type = _one_of(parameters, "device-type", "disk", "cdrom")
    backend = {
        "params": target,
        "mode": mode,
        "type": "phy",
        "dev": vdev_name(devid),
        "device-type": device_type,
        "removable": _one_of(parameters, "removable", "0", "1"),
        "bootable": "1",
        "discard-enable": _one_of(parameters, "discard-enable", "1", "0"),
        "specification": "xen",
    }
    if script := parameters.get("script", "block-xenbusd"):
        backend["script"] = script
    return Directories(backend, {"virtual-device": str(devid), "device-type": device_type, "trusted": "1"})


def _one_of(parameters: Mapping[str, str], name: str, *values: str) -> str:
    value = parameters.get(name, values[0])
    if value not in values:
        raise UsageError(f"vbd: {name}={value!r}: it is one of {', '.join(values)}")
    return value
