"""The table [drivers.vtpm] of a configuration file, and the form of a uuid. This package's README shows the table."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from xenbusd.api import Option, Schema, UsageError, absolute_path, true_or_false
from xenbusd_vtpm.protocol import VERSIONS

STATE_DIR = "/var/lib/xenbusd/vtpm"
"""Where TPMs are on a Xen host, unless `state_dir` names another folder."""

USER = "tss"
"""Debian's user for TPMs; the packages swtpm-tools and tpm2-tools create it."""

WHERE = "[drivers.vtpm]"
"""The table's name in messages."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What the backend takes from the table, checked."""

    state_dir: str
    version: str = "2.0"
    versions: Mapping[str, str] = field(default_factory=dict)
    key_file: str | None = None
    user: str | None = None
    """Who swtpm runs as; None: the daemon's own user."""


def parse_uuid(text: str) -> str:
    """Return a uuid in lower case. Anything else is refused: a uuid becomes part of a path.

    Raises:
        UsageError
    """
    try:
        return check_uuid(text)
    except ValueError as error:
        raise UsageError(f"vtpm: {error}") from None


def check_uuid(value: object) -> str:
    """A check for a uuid, which is returned in lower case.

    Raises:
        ValueError
    """
    uuid = value.lower() if isinstance(value, str) else ""
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"{str(value)[:64]!r} is no uuid: write 32 hexadecimal digits, as `uuidgen` prints them")
    return uuid


def check_version(value: object) -> str:
    """A check for the version of a TPM.

    Raises:
        ValueError
    """
    if not isinstance(value, str) or value not in VERSIONS:
        raise ValueError(f"{value!r} is none of {', '.join(VERSIONS)}; in a file, write it in quotes")
    return value


def _check_versions(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError('write a table [drivers.vtpm.versions] with lines "<uuid>" = "1.2"')
    return {check_uuid(uuid): check_version(version) for uuid, version in value.items()}


def _check_user(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no user's name")
    return value


OPTIONS = Schema(
    Option("state_dir", absolute_path, help="folder of all TPMs"),
    Option("version", check_version, default="2.0", help="version of TPMs that are made from now on"),
    Option("versions", _check_versions, default={}, help="versions of single TPMs, by uuid"),
    Option("key_file", absolute_path, help="file with the key that TPMs made from now on are encrypted with"),
    Option("user", _check_user, help="user that swtpm runs as"),
    Option("vtpmx", true_or_false, default=True, help="agent: give the TPM to the kernel, where that has a TPM proxy"),
)
"""The table [drivers.vtpm]. Backend and frontend may share a file, so each accepts the other's keys."""


def parse_settings(options: Mapping[str, object], default_state_dir: str) -> Settings:
    """Check the table, and fill in what depends on this host.

    Raises:
        UsageError: naming the key.
    """
    found = OPTIONS.read(options, WHERE)
    return Settings(
        state_dir=found["state_dir"] or default_state_dir,
        version=found["version"],
        versions=found["versions"],
        key_file=found["key_file"],
        user=_existing_user(found["user"]),
    )


def _existing_user(name: str | None) -> str | None:
    """Return the user to become. Only root can become another; `USER` need not exist."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name or USER).pw_name
    except KeyError:
        if name is None:
            return None
        raise UsageError(f"{WHERE} user: there is no user {name!r} here") from None
