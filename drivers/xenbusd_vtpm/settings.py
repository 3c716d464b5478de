"""What a configuration file may say of TPMs, in its table [drivers.vtpm]; and what a uuid is.

[drivers.vtpm]
state_dir = "/var/lib/xenbusd/vtpm"   # the default on Xen; elsewhere: beside the run directory
version = "2.0"                       # of TPMs that are not there yet: "2.0" or "1.2"
key_file = "/etc/xenbusd/vtpm.key"    # 64 hexadecimal digits: TPMs that are not there yet are encrypted with it
user = "tss"                          # who swtpm runs as; the default is tss, where there is such a user

[drivers.vtpm.versions]
"01234567-89ab-cdef-0123-456789abcdef" = "1.2"
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from xenbusd.api import UsageError
from xenbusd_vtpm.protocol import VERSIONS

STATE_DIR = "/var/lib/xenbusd/vtpm"
"""On a real host."""

USER = "tss"
"""A user of Debian's for TPMs, made by swtpm-tools, and by tpm2-tools."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

KEYS = ("state_dir", "version", "versions", "key_file", "user")
FRONTEND_KEYS = ("vtpmx",)
"""Read by the agent; named here because both ends may share a file."""


@dataclass(frozen=True)
class Settings:
    """The table, checked."""

    state_dir: str
    version: str = "2.0"
    versions: Mapping[str, str] = field(default_factory=dict)
    key_file: str | None = None
    user: str | None = None
    """None: our own user."""


def parse_uuid(text: str) -> str:
    """Return a uuid in lower case; whatever else there is in it, such as a path, is refused.

    Raises:
        UsageError
    """
    uuid = text.lower()
    if not _UUID.fullmatch(uuid):
        raise UsageError(f"vtpm: {text[:64]!r} is no uuid: write 32 hexadecimal digits, as `uuidgen` prints them")
    return uuid


def parse_version(text: object) -> str:
    """Check a version.

    Raises:
        UsageError
    """
    if not isinstance(text, str) or text not in VERSIONS:
        raise UsageError(f"vtpm: version {text!r}: it is one of {', '.join(VERSIONS)}, in quotes in a file")
    return text


def parse_settings(options: Mapping[str, object], default_state_dir: str) -> Settings:
    """Check the table.

    Raises:
        UsageError: naming the key.
    """
    unknown = sorted(set(options) - {*KEYS, *FRONTEND_KEYS})
    if unknown:
        raise UsageError(f"[drivers.vtpm] {unknown[0]}: unknown key; the keys are {', '.join((*KEYS, *FRONTEND_KEYS))}")
    versions = options.get("versions", {})
    if not isinstance(versions, Mapping):
        raise UsageError('[drivers.vtpm] versions: write a table [drivers.vtpm.versions] with lines "<uuid>" = "1.2"')
    return Settings(
        state_dir=_path(options, "state_dir") or default_state_dir,
        version=parse_version(options.get("version", "2.0")),
        versions={parse_uuid(str(uuid)): parse_version(version) for uuid, version in versions.items()},
        key_file=_path(options, "key_file"),
        user=_user(options.get("user")),
    )


def _path(options: Mapping[str, object], key: str) -> str | None:
    value = options.get(key)
    if value is None or (isinstance(value, str) and value.startswith("/")):
        return value
    raise UsageError(f"[drivers.vtpm] {key}: {value!r} is not an absolute path")


def _user(value: object) -> str | None:
    """The user to become: only root can, and tss need not be there."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"[drivers.vtpm] user: {value!r} is no user's name")
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(value or USER).pw_name
    except KeyError:
        if value is None:
            return None
        raise UsageError(f"[drivers.vtpm] user: there is no user {value!r} here") from None
