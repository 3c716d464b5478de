"""A disk as toolstacks describe it: its number, and the keys of both directories, as libxl writes them. Pure.

Source: tools/libs/light/libxl_disk.c (libxl__device_disk_dev_number, device_disk_add), docs/man/xen-vbd-interface.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from xenbusd.api import Devid, Directories, ResourceError, UsageError
from xenbusd_vbd.image.params import check_mode, parse, parse_mode

_NAME = re.compile(r"(xvd|sd|hd)([a-z]{1,3})([0-9]{1,3})?", re.ASCII)

PARAMETERS = {
    "target": "absolute path of a raw file or block device, its name below /dev, or <format>:...; required",
    "mode": "w, r, or w! to share it unchecked  [w]",
    "script": "hotplug script, a name or an absolute path; empty for none  [block-xenbusd]",
    "device-type": "disk or cdrom  [disk]",
    "removable": "0 or 1  [0]",
    "discard-enable": "0 or 1  [1]",
    "direct-io-safe": "0 or 1: whether written pages may be given to a network file system directly  [0]",
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
    target, mode = parameters.get("target", ""), _one_of(parameters, "mode", "w", "r", "w!")
    if not target:
        raise UsageError("vbd: say what to serve by its absolute path: target=/path/to/disk.img, or qcow2:/path")
    try:
        check_mode(parse(target), parse_mode(mode))
    except ResourceError as error:
        raise UsageError(f"vbd: {error}") from None
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
    if _one_of(parameters, "direct-io-safe", "0", "1") == "1":
        backend["direct-io-safe"] = "1"
    if script := parameters.get("script", "block-xenbusd"):
        backend["script"] = script
    return Directories(backend, {"virtual-device": str(devid), "device-type": device_type, "trusted": "1"})


def _one_of(parameters: Mapping[str, str], name: str, *values: str) -> str:
    value = parameters.get(name, values[0])
    if value not in values:
        raise UsageError(f"vbd: {name}={value!r}: it is one of {', '.join(values)}")
    return value


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def live_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    """The keys that change a disk in use: iops=, bandwidth= with an optional K, M or G, pause=.

    Raises:
        UsageError: a parameter is unknown or wrong.
    """
    keys = {}
    for name, value in parameters.items():
        if name == "pause":
            keys[name] = _one_of(parameters, name, "0", "1")
        elif name in ("iops", "bandwidth"):
            found = re.fullmatch(r"([0-9]{1,15})([KMG]?)", value, re.ASCII)
            if found is None or (name == "iops" and found[2]):
                raise UsageError(f"vbd: {name}={value!r}: write a number a second, as in iops=2000 or bandwidth=50M")
            keys[name] = str(int(found[1]) * _UNITS[found[2]])
        else:
            raise UsageError(f"vbd: {name!r} cannot be changed in use; iops, bandwidth and pause can")
    return keys
