"""The address of an NBD server: as text, and as a place to connect to. Pure: no I/O here.

Source: doc/uri.md of the NetworkBlockDevice/nbd repository; "nbd:unix:PATH" is QEMU's older way to write it.
"""

from __future__ import annotations

import errno
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from xenbusd_vbd.nbd.errors import NbdError
from xenbusd_vbd.nbd.wire import NAME_MAX

PORT = 10809
"""Assigned to NBD by IANA."""
SOCKET_PATH_MAX = 107
"""Bytes in the path of a UNIX socket."""


class Address(NamedTuple):
    """A server, and which of its exports."""

    path: str = ""
    """Of a UNIX socket; empty for TCP."""
    host: str = ""
    port: int = PORT
    export: str = ""

    def __str__(self) -> str:
        place = f"unix:{self.path}" if self.path else f"//{self.host}:{self.port}"
        return f"nbd:{place}" + (f", export {self.export!r}" if self.export else "")


def parse_address(format: str, rest: str) -> Address:
    """Read the text before and behind the first colon of an address.

    Args:
        format: "nbd" or "nbd+unix".
        rest: "unix:/path", "unix:/path:exportname=NAME", "//host[:port][/export]"; "///[export]?socket=/path".

    Raises:
        NbdError: it is none of these.
    """
    whole = f"{format}:{rest}"
    try:
        address = _socket(rest) if rest.startswith("unix:") else _uri(whole)
    except ValueError as error:
        examples = "nbd:unix:/run/nbd.sock, nbd://host:10809/export or nbd+unix:///export?socket=/run/nbd.sock"
        raise NbdError(f"{whole!r} is no NBD address: {error}; write {examples}", errno.EINVAL) from None
    if len(address.export.encode()) > NAME_MAX:
        raise NbdError(f"an NBD address: an export's name has at most {NAME_MAX} bytes", errno.ENAMETOOLONG)
    return address


def _socket(rest: str) -> Address:
    path, _, export = rest.removeprefix("unix:").partition(":exportname=")
    return Address(path=_checked(path), export=export)


def _uri(whole: str) -> Address:
    parts = urlsplit(whole)
    if parts.fragment or parts.username or parts.password:
        raise ValueError("an NBD address has neither user nor fragment")
    export = unquote(parts.path.removeprefix("/"))
    query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    if parts.scheme == "nbd+unix":
        if parts.netloc or set(query) != {"socket"} or len(query["socket"]) != 1:
            raise ValueError("nbd+unix names one socket and no host")
        return Address(path=_checked(query["socket"][0]), export=export)
    if parts.scheme != "nbd" or query or not parts.hostname:
        raise ValueError("a host is missing")
    return Address(host=parts.hostname, port=parts.port or PORT, export=export)


def _checked(path: str) -> str:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > SOCKET_PATH_MAX:
        raise ValueError(f"a socket has an absolute path of at most {SOCKET_PATH_MAX} bytes")
    return path
