"""The parameters with which a TPM is attached, and the keys that a toolstack writes for it, as libxl does. Pure.

Source: tools/libs/light/libxl_vtpm.c (libxl__set_xenstore_vtpm).
"""

from __future__ import annotations

from collections.abc import Mapping

from xenbusd.api import Devid, Directories, Option, Schema, UsageError
from xenbusd_vtpm.settings import check_uuid, check_version

PARAMETERS = Schema(
    Option("uuid", check_uuid, help="which TPM, made at its first use; required"),
    Option("version", check_version, help="2.0 or 1.2, of a TPM that is made now; default: the daemon's configuration"),
    noun="parameter",
)


def directories(devid: Devid, parameters: Mapping[str, str]) -> Directories:
    """Return the keys of both directories.

    Raises:
        UsageError: a parameter is unknown, missing or wrong.
    """
    given = PARAMETERS.given(parameters, "vtpm:")
    if "uuid" not in given:
        raise UsageError("vtpm: say which TPM by its uuid: uuid=$(uuidgen) for a new one")
    backend = {"handle": str(devid), "uuid": given["uuid"], "resume": "False"}
    if "version" in given:
        backend["tpm-version"] = given["version"]
    return Directories(backend, {"handle": str(devid)})
