"""The binding of libxengnttab: its layouts and prototypes against Xen's own header, and its errors."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xenbusd.errors import GrantError
from xenbusd.host import gnttab
from xenbusd.host.address import address_of
from xenbusd.host.evtchn import PROTOTYPES as EVTCHN_PROTOTYPES
from xenbusd.host.gnttab import GNTALLOC, GNTDEV, LOG_PROTOTYPES, PROTOTYPES, CopySegment, GrantMapper, GrantSharer
from xenbusd.host.interface import Copy
from xenbusd.host.library import Prototype
from xenbusd.ids import Domid, Gref

HEADERS = Path("/usr/include")

needs_headers = pytest.mark.skipif(
    not shutil.which("gcc") or not (HEADERS / "xengnttab.h").exists(),
    reason="Xen's headers or gcc are missing: apt install libxen-dev gcc",
)

LAYOUT = """
#include <stddef.h>
#include <stdio.h>
#include <xengnttab.h>
#define AT(field) offsetof(struct xengnttab_grant_copy_segment, field)
int main(void) {
    printf("[%zu, %zu, %zu, %zu, %zu, %zu, %zu, %zu, %zu, %zu, %zu]\\n",
        sizeof(struct xengnttab_grant_copy_segment), sizeof(union xengnttab_copy_ptr),
        AT(source), AT(source.foreign.ref), AT(source.foreign.offset), AT(source.foreign.domid),
        AT(dest), AT(dest.virt), AT(len), AT(flags), AT(status));
    return 0;
}
"""

C_NAMES: dict[Any, str] = {
    ctypes.c_int: "int",
    ctypes.c_uint: "unsigned int",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_void_p: "void *",
    ctypes.POINTER(ctypes.c_uint32): "uint32_t *",
    ctypes.POINTER(CopySegment): "struct xengnttab_grant_copy_segment *",
}


def as_c(prototypes: Mapping[str, Prototype]) -> str:
    """A C function for each prototype, that calls it with exactly the types that ctypes has been told."""
    lines = []
    for name, (result, arguments) in prototypes.items():
        parameters = ", ".join(f"{C_NAMES[kind]} a{index}" for index, kind in enumerate(arguments))
        passed = ", ".join(f"a{index}" for index in range(len(arguments)))
        lines.append(f"{C_NAMES[result]} call_{name}({parameters});")
        lines.append(f"{C_NAMES[result]} call_{name}({parameters}) {{ return {name}({passed}); }}")
    return "\n".join(lines)


@needs_headers
def test_layout_is_the_compilers(tmp_path: Path) -> None:
    """struct xengnttab_grant_copy_segment lies in memory as a C compiler lays it out from Xen's header."""
    (tmp_path / "layout.c").write_text(LAYOUT)
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True).stdout
    source, pointer = CopySegment.source.offset, gnttab.CopyPointer
    foreign = gnttab._Foreign
    assert json.loads(printed) == [
        ctypes.sizeof(CopySegment),
        ctypes.sizeof(pointer),
        source,
        source + foreign.ref.offset,
        source + foreign.offset.offset,
        source + foreign.domid.offset,
        CopySegment.dest.offset,
        CopySegment.dest.offset + pointer.virt.offset,
        CopySegment.len.offset,
        CopySegment.flags.offset,
        CopySegment.status.offset,
    ]


@needs_headers
@pytest.mark.parametrize(
    ("header", "prototypes"),
    [("xengnttab.h", PROTOTYPES), ("xenevtchn.h", EVTCHN_PROTOTYPES), ("xentoollog.h", LOG_PROTOTYPES)],
)
def test_prototypes_are_the_headers(tmp_path: Path, header: str, prototypes: Mapping[str, Prototype]) -> None:
    """Calling each function with the types that ctypes was told compiles without any conversion."""
    source = tmp_path / "calls.c"
    source.write_text(f"#include <stdint.h>\n#include <{header}>\n{as_c(prototypes)}\n")
    strict = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wpedantic", "-Werror", "-fsyntax-only"]
    result = subprocess.run(["gcc", *strict, source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_fast_layout_is_the_same_layout() -> None:
    """The structs that fill segments on the data path put each number where CopySegment has it."""
    assert struct.calcsize(gnttab._TO_GRANT.format) == gnttab.SEGMENT_BYTES == ctypes.sizeof(CopySegment)
    out, into = CopySegment(), CopySegment()
    gnttab._FROM_GRANT.pack_into(out, 0, 8, 100, 3, 0x7000, 4, 1, -2)
    gnttab._TO_GRANT.pack_into(into, 0, 0x7000, 8, 100, 3, 4, 2, -2)
    for segment, theirs, ours in ((out, out.source, out.dest), (into, into.dest, into.source)):
        assert (theirs.foreign.ref, theirs.foreign.offset, theirs.foreign.domid) == (8, 100, 3)
        assert (ours.virt, segment.len, segment.status) == (0x7000, 4, -2)
    assert (out.flags, into.flags) == (1, 2)


@pytest.fixture
def installed() -> ctypes.CDLL:
    """Debian's libxengnttab."""
    try:
        return gnttab.library()
    except Exception as error:
        pytest.skip(str(error))


def test_every_prototype_resolves_in_the_real_library(installed: ctypes.CDLL) -> None:
    """Each function is there, and is called with declared types only; the GIL is free meanwhile."""
    assert not isinstance(installed, ctypes.PyDLL)
    for name, prototype in PROTOTYPES.items():
        function = getattr(installed, name)
        assert function.argtypes == list(prototype.arguments)
        assert function.restype is prototype.result


@pytest.mark.usefixtures("installed")
@pytest.mark.skipif(os.path.exists(GNTDEV), reason="this is a Xen domain")
def test_missing_device_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Without Xen the real library's open fails with the device and the reason; it prints nothing of its own."""
    with pytest.raises(GrantError, match=rf"xengnttab_open\({GNTDEV}\): No such file") as caught:
        GrantMapper()
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(GrantError, match=rf"xengntshr_open\({GNTALLOC}; is the module xen-gntalloc loaded\?\)"):
        GrantSharer()
    assert capfd.readouterr() == ("", "")


class Library:
    """Plays libxengnttab: records its calls, and answers as the test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.statuses: list[int] = []
        self.fails_with = 0
        self.page = bytearray(4096 * 3)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> int | None:
            self.calls.append((name, arguments))
            ctypes.set_errno(self.fails_with)
            if name.endswith("_open"):
                return 0x1000
            if "map_domain" in name or "share_pages" in name:
                return None if self.fails_with else address_of(self.page)
            if name == "xengnttab_grant_copy" and not self.fails_with:
                batch: Any = arguments[2]
                for segment, status in zip(batch, self.statuses, strict=False):
                    segment.status = status
            return -1 if self.fails_with else 0

        return call


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library that is not there."""
    played = Library()
    monkeypatch.setattr(gnttab, "library", lambda: played)
    monkeypatch.setattr(gnttab, "_quiet_logger", lambda: None)
    return played


def test_failed_map_names_call_domain_and_references(library: Library) -> None:
    """What a log needs to find the culprit is in the message."""
    mapper = GrantMapper()
    library.fails_with = errno.EINVAL
    with pytest.raises(GrantError) as caught:
        mapper.map(Domid(3), [Gref(8), Gref(9)], True)
    assert str(caught.value) == (
        "xengnttab_map_domain_grant_refs(domain 3, references 8 9, writable): Invalid argument"
    )


@pytest.mark.parametrize(("domid", "grefs"), [(65539, [8]), (-1, [8]), (3, [1 << 32]), (3, [-1]), (3, [])])
def test_numbers_that_c_would_cut_never_reach_it(library: Library, domid: int, grefs: list[int]) -> None:
    """Domain 65539 is not domain 3."""
    mapper = GrantMapper()
    library.calls.clear()
    with pytest.raises(GrantError) as caught:
        mapper.map(Domid(domid), [Gref(gref) for gref in grefs], True)
    assert caught.value.errno == errno.EINVAL
    assert not library.calls


@pytest.mark.parametrize(("writable", "protection"), [(True, 3), (False, 1)])
def test_map_asks_for_what_is_needed(library: Library, writable: bool, protection: int) -> None:
    """Domain, references and protection arrive as the header wants them."""
    mapper = GrantMapper()
    assert mapper.map(Domid(3), [Gref(8), Gref(0xFFFFFFFF)], writable) == address_of(library.page)
    name, (handle, count, domid, refs, asked) = library.calls[-1]
    assert name == "xengnttab_map_domain_grant_refs"
    assert (handle, count, domid, asked) == (0x1000, 2, 3, protection)
    assert list(refs) == [8, 0xFFFFFFFF]  # type: ignore[call-overload]


def test_copy_submits_what_is_sound_and_returns_all_statuses(library: Library) -> None:
    """One call for the batch; a segment that leaves its page is kept out; each status lands at its segment."""
    mapper = GrantMapper()
    library.statuses = [0, -8, -3]
    local = bytearray(8)
    statuses = mapper.copy(
        [
            Copy(False, Domid(3), Gref(8), 0, memoryview(local)),
            Copy(False, Domid(3), Gref(8), 4090, memoryview(local)),
            Copy(True, Domid(4), Gref(9), 16, memoryview(b"const")),
            Copy(True, Domid(4), Gref(10), 4095, memoryview(b"c")),
        ]
    )
    assert statuses == [0, errno.EINVAL, errno.EACCES, errno.EINVAL]
    name, arguments = library.calls[-1]
    batch: Any = arguments[2]
    assert (name, arguments[1]) == ("xengnttab_grant_copy", 3)
    first, second = batch[0], batch[1]
    assert (first.source.foreign.ref, first.dest.virt, first.len, first.flags) == (8, address_of(local), 8, 1)
    assert (second.dest.foreign.ref, second.dest.foreign.offset, second.dest.foreign.domid) == (9, 16, 4)
    assert (second.len, second.flags) == (5, 2)


@pytest.mark.parametrize("status", range(-14, 0))
def test_every_status_is_an_errno(library: Library, status: int) -> None:
    """Whatever Xen answers but 0, known or not, is a positive errno."""
    library.statuses = [status]
    assert GrantMapper().copy([Copy(True, Domid(3), Gref(8), 0, memoryview(b"x"))])[0] > 0


def test_batch_that_cannot_be_submitted_is_an_error(library: Library) -> None:
    """When the call fails nothing is known of any segment; without segments there is no call."""
    mapper = GrantMapper()
    assert mapper.copy([]) == []
    library.fails_with = errno.EFAULT
    with pytest.raises(GrantError, match=r"xengnttab_grant_copy\(1 segments\): Bad address"):
        mapper.copy([Copy(True, Domid(3), Gref(8), 0, memoryview(b"x"))])


def test_closed_device_is_an_error_and_no_crash(library: Library) -> None:
    """After close no call reaches the library with a null handle; calls that give pages back do nothing."""
    mapper, sharer = GrantMapper(), GrantSharer()
    for device in (mapper, sharer):
        device.close()
        device.close()
    library.calls.clear()
    with pytest.raises(GrantError, match="the host is closed"):
        mapper.map(Domid(3), [Gref(8)], True)
    with pytest.raises(GrantError, match="the host is closed"):
        mapper.copy([Copy(True, Domid(3), Gref(8), 0, memoryview(b"x"))])
    with pytest.raises(GrantError, match="the host is closed"):
        sharer.share(Domid(3), 1, True)
    mapper.unmap(0x1000, 1)
    sharer.unshare(0x1000, 1)
    assert not library.calls


def test_refused_unmap_and_share_are_errors(library: Library) -> None:
    """Every call's failure is reported, with the call's name."""
    mapper, sharer = GrantMapper(), GrantSharer()
    library.fails_with = errno.ENOSPC
    with pytest.raises(GrantError, match=r"xengnttab_unmap\(2 pages"):
        mapper.unmap(0x1000, 2)
    with pytest.raises(GrantError, match=r"xengntshr_unshare\(2 pages"):
        sharer.unshare(0x1000, 2)
    with pytest.raises(GrantError, match=r"xengntshr_share_pages\(domain 3, 2 pages\): No space"):
        sharer.share(Domid(3), 2, True)
    with pytest.raises(GrantError, match="Invalid argument"):
        sharer.share(Domid(3), 0, True)
