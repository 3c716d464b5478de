"""A disk as toolstacks describe it: its number, and the keys of both directories, as libxl writes them. Pure.

Source: tools/libs/light/libxl_disk.c (libxl__device_disk_dev_number, device_disk_add), docs/man/xen-vbd-interface.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from xenbusd.api import Devid, Directories, Option, ResourceError, Schema, UsageError, one_of
from xenbusd_vbd.image.params import MODES, check_mode, parse, parse_mode

_NAME = re.compile(r"(xvd|sd|hd)([a-z]{1,3})([0-9]{1,3})?", re.ASCII)


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


def check_target(value: object) -> str:
    """A check for a target; it is returned as it was written.

    Raises:
        ValueError
    """
    if not value:
        raise ValueError("say what to serve by its absolute path: target=/path/to/disk.img, or qcow2:/path")
    try:
        parse(str(value))
    except ResourceError as error:
        raise ValueError(str(error)) from None
    return str(value)


def check_script(value: object) -> str:
    """A check for a script's name: any text, because the script is only looked up when it is run."""
    return str(value)


PARAMETERS = Schema(
    Option(
        "target",
        check_target,
        help="absolute path of a raw file or block device, its name below /dev, or <format>:...; required",
    ),
    Option("mode", one_of(*MODES), default="w", help="w, r, or either with ! to share it unchecked"),
    Option(
        "script",
        check_script,
        default="block-xenbusd",
        help="hotplug script, a name or an absolute path; empty for none",
    ),
    Option("device-type", one_of("disk", "cdrom"), default="disk", help="disk or cdrom"),
    Option("removable", one_of("0", "1"), default="0", help="0 or 1"),
    Option("discard-enable", one_of("0", "1"), default="1", help="0 or 1"),
    Option(
        "direct-io-safe",
        one_of("0", "1"),
        default="0",
        help="0 or 1: whether written pages may be given to a network file system directly",
    ),
    noun="parameter",
)


def directories(devid: Devid, parameters: Mapping[str, str]) -> Directories:
    """The keys for both directories.

    Raises:
        UsageError: a parameter is unknown, missing or wrong.
    """
    given = PARAMETERS.read({**parameters, "target": parameters.get("target", "")}, "vbd:")
    try:
        check_mode(parse(given["target"]), parse_mode(given["mode"]))
    except ResourceError as error:
        raise UsageError(f"vbd: {error}") from None
    backend = {
        "params": given["target"],
        "mode": given["mode"],
        "type": "phy",
        "dev": vdev_name(devid),
        "device-type": given["device-type"],
        "removable": given["removable"],
        "bootable": "1",
        "discard-enable": given["discard-enable"],
        "specification": "xen",
    }
    if given["direct-io-safe"] == "1":
        backend["direct-io-safe"] = "1"
    if given["script"]:
        backend["script"] = given["script"]
    return Directories(backend, {"virtual-device": str(devid), "device-type": given["device-type"], "trusted": "1"})


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def check_iops(value: object) -> str:
    """A check for a number of requests.

    Raises:
        ValueError
    """
    if re.fullmatch(r"[0-9]{1,15}", str(value), re.ASCII) is None:
        raise ValueError(f"{value!r}: write a number a second, as in iops=2000")
    return str(int(str(value)))


def check_bandwidth(value: object) -> str:
    """A check for a number of bytes, with an optional K, M or G, which is returned without it.

    Raises:
        ValueError
    """
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)", str(value), re.ASCII)
    if found is None:
        raise ValueError(f"{value!r}: write a number a second, as in bandwidth=50M")
    return str(int(found[1]) * _UNITS[found[2]])


LIVE = Schema(
    Option("iops", check_iops, help="requests a second; 0 for no limit"),
    Option("bandwidth", check_bandwidth, help="bytes a second, such as 50M; 0 for no limit"),
    Option("pause", one_of("0", "1"), help="1 to answer no more requests and close the image, 0 to resume"),
    noun="parameter",
)
"""Keys of the backend's directory that change a disk in use."""
