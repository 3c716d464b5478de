"""What `params` names: a raw image, or one of a stated format, which is never guessed from its contents (XSA-258)."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from xenbusd.api import ResourceError
from xenbusd_vbd.nbd.address import Address, parse_address
from xenbusd_vbd.nbd.errors import NbdError

RAW = "raw"

_FORMAT = re.compile(r"([a-z][a-z0-9+]*):(.*)", re.ASCII | re.DOTALL)


class Params(NamedTuple):
    """One `params` value, taken apart."""

    format: str
    """RAW, or what an image server is started for, or `nbd` for one that runs already."""
    target: str
    """An absolute path; for network formats whatever their image server takes."""


def nbd_address(params: Params) -> Address:
    """The NBD server that `nbd:` or `nbd+unix:` names.

    Raises:
        ResourceError: it names none.
    """
    try:
        return parse_address(params.format, params.target)
    except NbdError as error:
        raise ResourceError(f"params: {error}", error.errno) from error


def parse(text: str) -> Params:
    """Take a `params` value apart: "/path", "raw:/path", "qcow2:/path", "nbd://host/export".

    Raises:
        ResourceError: a raw image without an absolute path.
    """
    found = None if text.startswith("/") else _FORMAT.fullmatch(text)
    format, target = found.groups() if found else (RAW, text)
    if format == "aio":  # libxl's word for it
        format = RAW
    if format == RAW and not target.startswith("/"):
        raise ResourceError(f"params {text!r}: write an absolute path, as in raw:/srv/disk.img", errno.EINVAL)
    return Params(format, target)
