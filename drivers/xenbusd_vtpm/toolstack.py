"""What a toolstack says of a TPM: the keys that describe it, as libxl writes them. Pure.

Source: tools/libs/light/libxl_vtpm.c (libxl__set_xenstore_vtpm).
"""

from __future__ import annotations

from collections.abc import Mapping

from xenbusd.api import Devid, Directories, UsageError
from xenbusd_vtpm.settings import parse_uuid, parse_version

PARAMETERS = {
    "uuid": "which TPM; made at its first use; required",
    "version": "2.0 or 1.2, of a TPM that is made now  [as the daemon's configuration says]",
}


def directories(devid: Devid, parameters: Mapping[str, str]) -> Directories:
    """The keys for both directories.

    Raises:
        UsageError: a parameter is unknown, missing or wrong.
    """
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise UsageError(f"vtpm: unknown parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
    if "uuid" not in parameters:
        raise UsageError("vtpm: say which TPM by its uuid: uuid=$(uuidgen) for a new one")
    backend = {"handle": str(devid), "uuid": parse_uuid(parameters["uuid"]), "resume": "False"}
    if "version" in parameters:
        backend["tpm-version"] = parse_version(parameters["version"])
    return Directories(backend, {"handle": str(devid)})
