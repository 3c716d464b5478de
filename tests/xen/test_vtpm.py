"""TPMs on real Xen: given by `xl`, used by Linux's own xen-tpmfront, and by our agent with the kernel's TPM proxy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen import build
from tests.xen.dom0 import ALL, Daemon, Guest, assert_nothing_left, daemon, living, run, until
from tests.xen.domu import Domu
from tests.xen.xl import xl
from xenbusd.bus.state import State
from xenbusd.ids import Domid

TPM_1_2 = "00000000-0000-4000-8000-000000000012"
TPM_2_0 = "00000000-0000-4000-8000-000000000020"

EXTEND = "00c100000022000000140000000b" + "11" * 20
PCR_READ = "00c10000000e000000150000000b"
GET_RANDOM = "00c10000000e0000004600000008"
"""TPM 1.2: register 11; 8 bytes. A 0a in the middle would end a line, and be written on its own."""

STARTUP_2_0 = "80010000000c000001440000"
GET_RANDOM_2_0 = "80010000000c0000017b0008"

ROUNDS = 100 if ALL else 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration as an administrator of stock Linux guests would write it."""
    path = tmp_path_factory.mktemp("vtpm") / "xenbusd.toml"
    path.write_text(f'[drivers.vtpm]\nversion = "1.2"\n\n[drivers.vtpm.versions]\n"{TPM_2_0}" = "2.0"\n')
    return path


@pytest.fixture
def serve(tmp_path: Path, config: Path) -> Iterator[Daemon]:
    """The backends."""
    with daemon("serve", tmp_path / "serve", "--config", str(config)) as process:
        yield process


@pytest.fixture(scope="module")
def tpm_ramdisk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a guest of these tests has besides the others': made of dom0's own files."""
    dom0 = build.Image(Path("/"))
    archive = build.Archive()
    build._add_modules(archive, dom0, ("xen-tpmfront", "tpm_vtpm_proxy"))
    build._add_program(archive, dom0, "/usr/bin/tpm2")
    tcti = "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"
    archive.copy(Path(tcti), tcti[1:])
    build._add_libraries(archive, dom0, tcti)
    return archive.write(tmp_path_factory.mktemp("tpm") / "tpm.cpio").read_bytes()


def equip(guest: Guest, ramdisk: bytes, *uuids: str) -> None:
    """Give a guest TPMs, and what it needs to use them."""
    with open(f"/tmp/{guest.name}.cpio", "ab") as file:
        file.write(ramdisk)
    with open(guest.config, "a") as file:
        file.write(f"vtpm = {[f'backend=0,uuid={uuid}' for uuid in uuids]!r}\n")


class TpmGuest(Domu):
    """A guest with xen-tpmfront that carries out commands."""

    def use_tpm(self, number: int = 0) -> None:
        """Wait for /dev/tpmN, and open it."""
        tpm = f"/dev/tpm{number}"
        self.do(f"for tenth in $(seq 300); do [ -c {tpm} ] && break; sleep 0.1; done; [ -c {tpm} ]")
        self.do(f"exec 3<>{tpm}")
        self.do("ask() { printf \"$1\" >&3; dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d ' \\n'; }")

    def ask(self, command: str) -> str:
        """Send a command to the TPM opened last, in hexadecimal; return the response likewise."""
        escaped = "".join(f"\\x{command[at : at + 2]}" for at in range(0, len(command), 2))
        return self.do(f"ask '{escaped}'")


def vtpms(domid: Domid) -> list[str]:
    """The backend directories of a guest's TPMs."""
    return re.findall(rf"^/local/domain/0/backend/vtpm/{domid}/(\d+) =", run("xenstore-ls", "-f"), re.M)


def test_linux_tpmfront(serve: Daemon, tpm_ramdisk: bytes, tmp_path: Path, config: Path) -> None:
    """Linux's own frontend: its /dev/tpm0 answers, registers are extended and read. The daemon is killed, and the next
    one goes on: Linux does not notice. Detached and attached again it is a TPM after power-on. Linux takes a 2.0
    for a 1.2 that does not answer well, and passes commands of 2.0 on all the same. `xl shutdown` leaves nothing."""
    guest = TpmGuest("vtpm")
    equip(guest, tpm_ramdisk, TPM_1_2)
    try:
        guest.start().assert_reached(State.INIT_WAIT)
        guest.do("load xen-tpmfront")
        guest.use_tpm()
        assert re.fullmatch(r"00c4000000160000000000000008[0-9a-f]{16}", guest.ask(GET_RANDOM))
        assert guest.ask(PCR_READ) == "00c40000001e00000000" + "00" * 20
        extended = guest.ask(EXTEND)
        assert guest.ask(PCR_READ) == extended != "00c40000001e00000000" + "00" * 20

        serve.kill()
        with daemon("serve", tmp_path / "serve", "--config", str(config)) as second:
            assert guest.ask(PCR_READ) == extended
            assert "device.adopted" in second.log

            guest.do("exec 3>&-")
            domid = guest.domid
            xl("vtpm-detach", guest.name, "0").assert_reached(State.CLOSED)
            assert vtpms(domid) == []
            guest.do("[ ! -e /dev/tpm0 ]")
            xl("vtpm-attach", guest.name, f"uuid={TPM_1_2}", "backend=0").assert_reached(State.INIT_WAIT)
            guest.use_tpm()
            assert guest.ask(PCR_READ) == "00c40000001e00000000" + "00" * 20

            xl("vtpm-attach", guest.name, f"uuid={TPM_2_0}", "backend=0").assert_reached(State.INIT_WAIT)
            guest.use_tpm(1)
            assert guest.ask(STARTUP_2_0) == "80010000000a00000000"
            assert re.fullmatch(r"8001000000140000000000[0-9a-f]{18}", guest.ask(GET_RANDOM_2_0))

            run("xl", "shutdown", "-w", guest.name, timeout_s=120)
            guest.wait_gone()
            assert_nothing_left()
    finally:
        print(guest.console)
        guest.destroy()


def test_attached_and_detached_again_and_again(serve: Daemon, tpm_ramdisk: bytes) -> None:
    """A TPM comes and goes ROUNDS times under Linux's frontend, and never late; a guest that is destroyed while it has
    one leaves nothing."""
    guest = TpmGuest("often")
    equip(guest, tpm_ramdisk)
    try:
        guest.start()
        guest.do("load xen-tpmfront")
        domid = guest.domid
        files: list[str] = []
        began = time.monotonic()
        for round in range(ROUNDS):
            xl("vtpm-attach", guest.name, f"uuid={TPM_1_2}", "backend=0").assert_reached(State.INIT_WAIT)
            if round == 0:  # later ones are detached while it starts
                until(lambda: True if "tpm.started" in serve.log else None, "tpm.started")
            xl("vtpm-detach", guest.name, "0").assert_reached(State.CLOSED)
            assert vtpms(domid) == []
            if round == 0:
                files = serve.open_files
        print(f"{ROUNDS} rounds in {time.monotonic() - began:.0f} s")
        serve.wait_files(files)
        xl("vtpm-attach", guest.name, f"uuid={TPM_1_2}", "backend=0")
        guest.use_tpm()
        guest.destroy()
        guest.wait_gone()
        assert_nothing_left()
    finally:
        print(guest.console)
        guest.destroy()


@pytest.mark.usefixtures("serve")
def test_agent_in_a_guest(tpm_ramdisk: bytes) -> None:
    """Our frontend gives the guest's kernel a TPM 2.0: Debian's tpm2-tools make keys, sign and verify with it."""
    guest = Guest("tpmagent", "tpm", [], python=True)
    equip(guest, tpm_ramdisk, TPM_2_0)
    with living(guest):
        guest.wait_for(r"^job tpm ended with 0$", 400)
        guest.wait_gone()
    said = guest.console
    assert re.search(r'value: +"2\.0"', said)
    assert re.search(r"10: 0x(?!0{64})[0-9A-F]{64}", said)
    assert "the signature is good" in said
    assert "agent ended with 0" in said
    assert "/dev/tpm0 is gone" in said
    assert_nothing_left()
