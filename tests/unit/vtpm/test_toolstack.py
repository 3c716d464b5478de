"""The keys of a TPM, as libxl writes them."""

from __future__ import annotations

import pytest

from xenbusd.errors import UsageError
from xenbusd.ids import Devid
from xenbusd_vtpm.toolstack import directories

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def test_keys_as_libxl_writes_them() -> None:
    """handle, uuid and resume; and the version, for which xl has no parameter."""
    keys = directories(Devid(3), {"uuid": UUID.upper(), "version": "1.2"})
    assert keys.backend == {"handle": "3", "uuid": UUID, "resume": "False", "tpm-version": "1.2"}
    assert keys.frontend == {"handle": "3"}
    assert "tpm-version" not in directories(Devid(0), {"uuid": UUID}).backend


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, r"uuid=\$\(uuidgen\)"),
        ({"uuid": "x"}, "is no uuid"),
        ({"uuid": UUID, "version": "2"}, "vtpm: version: '2' is none of 2.0, 1.2"),
        ({"uuid": UUID, "target": "/"}, "vtpm: target: unknown parameter; the parameters are uuid, version"),
    ],
)
def test_mistakes(parameters: dict[str, str], said: str) -> None:
    """Each message says what to write."""
    with pytest.raises(UsageError, match=said):
        directories(Devid(0), parameters)
